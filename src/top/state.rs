//! State of the view: data from the server and settings by keys. Independent of the terminal and
//! the clock.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::ControlFlow,
};

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::pb::{self, AlertStatus, watch_response::Update};

/// Upper bound of alerts in memory. The oldest are dropped.
pub(super) const MAX_ALERTS: usize = 1_000;

/// Upper bound of samples in the history of a GPU, more than the width of any terminal.
const MAX_HISTORY: usize = 512;

/// Minimum age at which a sample counts as stale.
const MIN_STALE_AGE: TimeDelta = TimeDelta::seconds(5);

/// Event of the connection.
#[derive(Debug)]
pub(super) enum ConnectionEvent {
    /// The server answered.
    Connected,
    /// A complete snapshot follows.
    Snapshot,
    /// Response from the server.
    Response(Box<pb::WatchResponse>),
    /// The connection broke or could not be made, with the cause.
    Broken(String),
}

/// State of the connection to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionState {
    /// The server has not answered yet.
    Connecting,
    Connected,
    /// The server has answered before.
    Reconnecting,
}

/// Order of the GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// By host and index.
    Index,
    /// By utilization, highest first.
    Utilization,
    /// By memory use in percent, highest first.
    Memory,
    /// By temperature, highest first.
    Temperature,
}

/// Order of the alerts: time of creation, then id.
type AlertKey = (DateTime<Utc>, String);

#[derive(Debug)]
pub(super) struct State {
    pub(super) server: String,
    pub(super) link: ConnectionState,
    /// Time of the last change of the connection state.
    pub(super) since: DateTime<Utc>,
    /// Cause of the last failed connection.
    pub(super) problem: Option<String>,
    /// Newest heartbeat of the current connection.
    pub(super) heartbeat: Option<pb::Heartbeat>,
    /// True after the end of the first snapshot.
    pub(super) complete: bool,
    pub(super) sort: Sort,
    pub(super) help: bool,
    /// Index of the first visible alert.
    pub(super) scroll: usize,
    /// Number of visible alerts.
    page: usize,
    /// Server clock minus local clock.
    ahead: TimeDelta,
    gpus: BTreeMap<String, Gpu>,
    alerts: BTreeMap<AlertKey, pb::Alert>,
    /// Alerts received since the start of the current snapshot.
    snapshot: Option<BTreeSet<AlertKey>>,
}

/// GPU with its newest sample.
#[derive(Debug)]
pub(super) struct Gpu {
    pub(super) stats: pb::GpuStats,
    /// Utilization in percent, oldest first. `None` where it was not measured.
    pub(super) history: VecDeque<Option<u64>>,
    /// Shortest time between two samples so far.
    interval: Option<TimeDelta>,
}

impl State {
    pub(super) fn new(server: String, now: DateTime<Utc>) -> Self {
        Self {
            server,
            link: ConnectionState::Connecting,
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

    /// Applies an event of the connection.
    pub(super) fn apply_event(&mut self, event: ConnectionEvent, now: DateTime<Utc>) {
        match event {
            ConnectionEvent::Connected => {
                (self.link, self.since, self.problem) = (ConnectionState::Connected, now, None);
            }
            ConnectionEvent::Snapshot => self.snapshot = Some(BTreeSet::new()),
            ConnectionEvent::Response(response) => self.apply_response(*response, now),
            ConnectionEvent::Broken(problem) => {
                if self.link == ConnectionState::Connected {
                    (self.link, self.since) = (ConnectionState::Reconnecting, now);
                }
                self.problem = Some(problem);
                self.heartbeat = None;
            }
        }
    }

    fn apply_response(&mut self, response: pb::WatchResponse, now: DateTime<Utc>) {
        match response.update {
            Some(Update::GpuStats(stats)) => self.record_sample(stats),
            Some(Update::Alert(change)) => {
                if let Some(alert) = change.alert {
                    self.record_alert(alert);
                }
            }
            Some(Update::Heartbeat(heartbeat)) => {
                if let Some(time) = time(heartbeat.server_time.as_ref()) {
                    self.ahead = time - now;
                }
                self.heartbeat = Some(heartbeat);
            }
            Some(Update::SnapshotEnd(_)) => self.end_snapshot(),
            // Not requested, or from a newer server.
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

    fn record_sample(&mut self, stats: pb::GpuStats) {
        let utilization = stats.gpu_utilization.map(percent);
        let uuid = stats.gpu_uuid.clone().unwrap_or_default();
        let Some(gpu) = self.gpus.get_mut(&uuid) else {
            let gpu = Gpu { stats, history: VecDeque::from([utilization]), interval: None };
            self.gpus.insert(uuid, gpu);
            return;
        };
        let times = (gpu.recorded_at(), time(stats.recorded_at.as_ref()));
        if let (Some(before), Some(after)) = times {
            let passed = after - before;
            if passed.is_zero() {
                return; // A new connection begins with what is known already.
            }
            if passed > gpu.stale_age() {
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

    fn record_alert(&mut self, alert: pb::Alert) {
        let key = (time(alert.created_at.as_ref()).unwrap_or_default(), alert.id.clone());
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.insert(key.clone());
        }
        let is_above = self.scroll > 0 && self.alerts.range(&key..).count() <= self.scroll;
        let is_known = self.alerts.insert(key, alert).is_some();
        // The visible alerts stay in place.
        if !is_known && is_above {
            self.scroll += 1;
        }
        if self.alerts.len() > MAX_ALERTS {
            self.alerts.pop_first();
        }
        self.clamp();
    }

    /// Removes open alerts that are missing from the snapshot, because they were closed in the
    /// meantime.
    fn end_snapshot(&mut self) {
        if let Some(snapshot) = self.snapshot.take() {
            let dismissed = AlertStatus::Dismissed;
            self.alerts.retain(|key, alert| snapshot.contains(key) || alert.status() == dismissed);
        }
        self.complete = true;
        self.clamp();
    }

    /// GPUs in the selected order. GPUs without the value come last.
    pub(super) fn gpus(&self) -> Vec<&Gpu> {
        let mut gpus: Vec<_> = self.gpus.values().collect();
        let sort_key = |gpu: &Gpu| {
            let stats = &gpu.stats;
            let instance = stats.mig_parent_uuid.is_some();
            (stats.host.clone(), stats.gpu_index, instance)
        };
        gpus.sort_by_cached_key(|gpu| sort_key(gpu));
        let sort_value = |gpu: &Gpu| match self.sort {
            Sort::Index => None,
            Sort::Utilization => gpu.stats.gpu_utilization,
            Sort::Memory => gpu.memory_percent(),
            Sort::Temperature => gpu.stats.temperature,
        };
        let value = |gpu: &Gpu| sort_value(gpu).unwrap_or(f64::NEG_INFINITY);
        gpus.sort_by(|a, b| value(b).total_cmp(&value(a)));
        gpus
    }

    /// Age of the newest sample of the GPU. `None` if the sample is not stale.
    pub(super) fn stale(&self, gpu: &Gpu, now: DateTime<Utc>) -> Option<TimeDelta> {
        let age = now.checked_add_signed(self.ahead)? - gpu.recorded_at()?;
        (age > gpu.stale_age()).then_some(age)
    }

    /// Alerts, newest first.
    pub(super) fn alerts(&self) -> impl ExactSizeIterator<Item = &pb::Alert> {
        self.alerts.values().rev()
    }

    /// Number of alerts with the status pending or delivered.
    pub(super) fn open_alerts(&self) -> usize {
        let is_open = |alert: &&pb::Alert| matches!(alert.status(), AlertStatus::Pending | AlertStatus::Delivered);
        self.alerts.values().filter(is_open).count()
    }

    /// Sets the number of visible alerts.
    pub(super) fn set_page(&mut self, page: usize) {
        self.page = page.max(1);
        self.clamp();
    }

    fn clamp(&mut self) {
        self.scroll = self.scroll.min(self.alerts.len().saturating_sub(self.page));
    }

    /// Applies a key. Breaks if the key quits.
    #[expect(clippy::wildcard_enum_match_arm, reason = "most of the many keys have no effect")]
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

    /// Age at which the newest sample counts as stale. Longer for GPUs that are sampled less often.
    fn stale_age(&self) -> TimeDelta {
        self.interval.map_or(MIN_STALE_AGE, |interval| MIN_STALE_AGE.max(interval * 3))
    }

    fn push(&mut self, utilization: Option<u64>) {
        if self.history.len() == MAX_HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(utilization);
    }

    /// Memory use in percent.
    #[expect(clippy::cast_precision_loss, reason = "2^53 MiB is out of reach")]
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

/// Time of an API timestamp. `None` outside of the years 1 to 9999.
pub(super) fn time(timestamp: Option<&prost_types::Timestamp>) -> Option<DateTime<Utc>> {
    let timestamp = timestamp?;
    let time = DateTime::from_timestamp(timestamp.seconds, timestamp.nanos.try_into().ok()?)?;
    (1..=9_999).contains(&time.year()).then_some(time)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is clamped to the range")]
fn percent(value: f64) -> u64 {
    value.round().clamp(0.0, 100.0) as u64
}

#[cfg(test)]
mod tests;
