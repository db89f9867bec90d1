//! What there is to see: what the server said, and what the keys have set. It knows no terminal and
//! no clock.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::ControlFlow,
};

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::pb::{self, AlertStatus, watch_response::Update};

/// How many alerts are kept, the newest.
pub(super) const MOST_ALERTS: usize = 1_000;

/// How many samples of a GPU are kept to draw its history: more than the widest terminal shows.
const HISTORY: usize = 512;

/// How old the newest sample of a GPU that is sampled every second may be.
const FRESH: TimeDelta = TimeDelta::seconds(5);

/// What the connection tells.
#[derive(Debug)]
pub(super) enum Heard {
    /// The server answers.
    Connected,
    /// What follows is a snapshot of all there is.
    Snapshot,
    /// The server sent this.
    Response(Box<pb::WatchResponse>),
    /// The connection broke, or could not be made.
    Broken(String),
}

/// How it stands with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// It has not answered yet.
    Connecting,
    Connected,
    /// It has answered before.
    Reconnecting,
}

/// The order of the GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// By host and index.
    Index,
    /// The busiest first.
    Utilization,
    /// The fullest first.
    Memory,
    /// The hottest first.
    Temperature,
}

/// The order in which alerts were raised.
type AlertKey = (DateTime<Utc>, String);

#[derive(Debug)]
pub(super) struct State {
    pub(super) server: String,
    pub(super) link: Link,
    /// Since when it stands so with the server.
    pub(super) since: DateTime<Utc>,
    /// Why the server is not there.
    pub(super) problem: Option<String>,
    /// The newest heartbeat of this connection.
    pub(super) heartbeat: Option<pb::Heartbeat>,
    /// Whether a snapshot has been seen to its end.
    pub(super) complete: bool,
    pub(super) sort: Sort,
    pub(super) help: bool,
    /// The number of the first alert to show.
    pub(super) scroll: usize,
    /// How many alerts can be seen at once.
    page: usize,
    /// How far the server's clock is ahead of ours.
    ahead: TimeDelta,
    gpus: BTreeMap<String, Gpu>,
    alerts: BTreeMap<AlertKey, pb::Alert>,
    /// The alerts that were heard of since the snapshot began, until it ends.
    snapshot: Option<BTreeSet<AlertKey>>,
}

/// A GPU, as of its newest sample.
#[derive(Debug)]
pub(super) struct Gpu {
    pub(super) stats: pb::GpuStats,
    /// The utilization in percent, oldest first; nothing where it was not measured.
    pub(super) history: VecDeque<Option<u64>>,
    /// The shortest time between two samples so far.
    interval: Option<TimeDelta>,
}

impl State {
    pub(super) fn new(server: String, now: DateTime<Utc>) -> Self {
        Self {
            server,
            link: Link::Connecting,
            since: now,
            problem: None,
            heartbeat: None,
            complete: false,
            sort: Sort::Index,
            help: false,
            scroll: 0,
            page: 1,
            ahead: TimeDelta::zero(),
            gpus: BTreeMap::new(),
            alerts: BTreeMap::new(),
            snapshot: None,
        }
    }

    /// Takes in what the connection tells.
    pub(super) fn hear(&mut self, heard: Heard, now: DateTime<Utc>) {
        match heard {
            Heard::Connected => {
                (self.link, self.since, self.problem) = (Link::Connected, now, None);
            }
            Heard::Snapshot => self.snapshot = Some(BTreeSet::new()),
            Heard::Response(response) => self.apply(*response, now),
            Heard::Broken(problem) => {
                if self.link == Link::Connected {
                    (self.link, self.since) = (Link::Reconnecting, now);
                }
                self.problem = Some(problem);
                self.heartbeat = None;
            }
        }
    }

    fn apply(&mut self, response: pb::WatchResponse, now: DateTime<Utc>) {
        match response.update {
            Some(Update::GpuStats(stats)) => self.sample(stats),
            Some(Update::Alert(change)) => {
                if let Some(alert) = change.alert {
                    self.alert(alert);
                }
            }
            Some(Update::Heartbeat(heartbeat)) => {
                if let Some(time) = time(heartbeat.server_time.as_ref()) {
                    self.ahead = time - now;
                }
                self.heartbeat = Some(heartbeat);
            }
            Some(Update::SnapshotEnd(_)) => self.end_snapshot(),
            // Not asked for, or of a newer server.
            Some(
                Update::Event(_)
                | Update::Camera(_)
                | Update::CameraZone(_)
                | Update::NotificationChannel(_)
                | Update::AlertRule(_)
                | Update::GpuEvent(_)
                | Update::Silence(_)
                | Update::JobChanges(_)
                | Update::JobLogs(_)
                | Update::JobQueue(_)
                | Update::JobType(_)
                | Update::JobSchedule(_)
                | Update::Unreadable(_),
            )
            | None => {}
        }
    }

    fn sample(&mut self, stats: pb::GpuStats) {
        let utilization = stats.gpu_utilization.map(percent);
        let uuid = stats.gpu_uuid.clone().unwrap_or_default();
        let Some(gpu) = self.gpus.get_mut(&uuid) else {
            let gpu = Gpu {
                stats,
                history: VecDeque::from([utilization]),
                interval: None,
            };
            self.gpus.insert(uuid, gpu);
            return;
        };
        let times = (gpu.recorded_at(), time(stats.recorded_at.as_ref()));
        if let (Some(before), Some(after)) = times {
            let passed = after - before;
            if passed.is_zero() {
                return; // A new connection begins with what is known already.
            }
            if passed > gpu.fresh() {
                gpu.push(None);
            }
            if passed > TimeDelta::zero() {
                let shortest = gpu.interval.map_or(passed, |interval| interval.min(passed));
                gpu.interval = Some(shortest);
            }
        }
        gpu.push(utilization);
        gpu.stats = stats;
    }

    fn alert(&mut self, alert: pb::Alert) {
        let key = (
            time(alert.created_at.as_ref()).unwrap_or_default(),
            alert.id.clone(),
        );
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.insert(key.clone());
        }
        let above = self.scroll > 0 && self.alerts.range(&key..).count() <= self.scroll;
        let known = self.alerts.insert(key, alert).is_some();
        // What is being looked at stays where it is.
        if !known && above {
            self.scroll += 1;
        }
        if self.alerts.len() > MOST_ALERTS {
            self.alerts.pop_first();
        }
        self.clamp();
    }

    /// What was open before and is not in the snapshot has been closed meanwhile, nobody told how.
    fn end_snapshot(&mut self) {
        if let Some(snapshot) = self.snapshot.take() {
            let dismissed = AlertStatus::Dismissed;
            self.alerts
                .retain(|key, alert| snapshot.contains(key) || alert.status() == dismissed);
        }
        self.complete = true;
        self.clamp();
    }

    /// The GPUs in the order that was chosen; those that do not tell the value come last.
    pub(super) fn gpus(&self) -> Vec<&Gpu> {
        let mut gpus: Vec<_> = self.gpus.values().collect();
        let place = |gpu: &Gpu| {
            let stats = &gpu.stats;
            let instance = stats.mig_parent_uuid.is_some();
            (stats.host.clone(), stats.gpu_index, instance)
        };
        gpus.sort_by_cached_key(|gpu| place(gpu));
        let value = |gpu: &Gpu| match self.sort {
            Sort::Index => None,
            Sort::Utilization => gpu.stats.gpu_utilization,
            Sort::Memory => gpu.memory_percent(),
            Sort::Temperature => gpu.stats.temperature,
        };
        let value = |gpu: &Gpu| value(gpu).unwrap_or(f64::NEG_INFINITY);
        gpus.sort_by(|a, b| value(b).total_cmp(&value(a)));
        gpus
    }

    /// How old the newest sample of a GPU is, if that is too old.
    pub(super) fn stale(&self, gpu: &Gpu, now: DateTime<Utc>) -> Option<TimeDelta> {
        let age = now.checked_add_signed(self.ahead)? - gpu.recorded_at()?;
        (age > gpu.fresh()).then_some(age)
    }

    /// The alerts, newest first.
    pub(super) fn alerts(&self) -> impl ExactSizeIterator<Item = &pb::Alert> {
        self.alerts.values().rev()
    }

    /// How many alerts are pending or delivered.
    pub(super) fn open_alerts(&self) -> usize {
        let open = |alert: &&pb::Alert| {
            matches!(
                alert.status(),
                AlertStatus::Pending | AlertStatus::Delivered
            )
        };
        self.alerts.values().filter(open).count()
    }

    /// Says how many alerts can be seen at once.
    pub(super) fn set_page(&mut self, page: usize) {
        self.page = page.max(1);
        self.clamp();
    }

    fn clamp(&mut self) {
        self.scroll = self.scroll.min(self.alerts.len().saturating_sub(self.page));
    }

    /// Does what a key says; breaks off if that is to end.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "most keys say nothing, and there are many"
    )]
    pub(super) fn press(&mut self, key: KeyEvent) -> ControlFlow<()> {
        if key.kind == KeyEventKind::Release {
            return ControlFlow::Continue(());
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let quits = match key.code {
            KeyCode::Char('c') => control,
            KeyCode::Char('q') => true,
            KeyCode::Esc => !self.help,
            _ => false,
        };
        if quits {
            return ControlFlow::Break(());
        }
        if self.help {
            self.help = false;
            return ControlFlow::Continue(());
        }
        match key.code {
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.scroll += 1,
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(self.page),
            KeyCode::PageDown => self.scroll += self.page,
            KeyCode::Home => self.scroll = 0,
            KeyCode::End => self.scroll = self.alerts.len(),
            _ => {}
        }
        self.clamp();
        ControlFlow::Continue(())
    }
}

impl Gpu {
    fn recorded_at(&self) -> Option<DateTime<Utc>> {
        time(self.stats.recorded_at.as_ref())
    }

    /// How old the newest sample may be: a server may be told to sample less often.
    fn fresh(&self) -> TimeDelta {
        self.interval
            .map_or(FRESH, |interval| FRESH.max(interval * 3))
    }

    fn push(&mut self, utilization: Option<u64>) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(utilization);
    }

    /// How much of the memory is in use, in percent.
    #[expect(
        clippy::cast_precision_loss,
        reason = "2^53 MiB is more than there will be"
    )]
    pub(super) fn memory_percent(&self) -> Option<f64> {
        let (used, total) = (self.stats.memory_used?, self.stats.memory_total?);
        (total > 0).then(|| used as f64 / total as f64 * 100.0)
    }
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Index => Self::Utilization,
            Self::Utilization => Self::Memory,
            Self::Memory => Self::Temperature,
            Self::Temperature => Self::Index,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Utilization => "utilization",
            Self::Memory => "memory",
            Self::Temperature => "temperature",
        }
    }
}

/// A time of the API, if it lies within the years 1 to 9999 as it must.
pub(super) fn time(timestamp: Option<&prost_types::Timestamp>) -> Option<DateTime<Utc>> {
    let timestamp = timestamp?;
    let time = DateTime::from_timestamp(timestamp.seconds, timestamp.nanos.try_into().ok()?)?;
    (1..=9_999).contains(&time.year()).then_some(time)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is clamped to what fits"
)]
fn percent(value: f64) -> u64 {
    value.round().clamp(0.0, 100.0) as u64
}

#[cfg(test)]
mod tests;
