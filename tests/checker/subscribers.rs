//! Those who watch, and record what they are sent.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use watchpost::pb::{
    self, Severity, Topic, WatchStart, monitor_service_client::MonitorServiceClient, watch_response::Update,
};

use super::{
    Run,
    history::{History, Sent, Step, What},
    random,
    truth::Alert,
    writers::CAMERAS,
};

/// What a subscriber wants to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// Events and alerts.
    Everything,
    Events,
    HighAlerts,
    AlertsOfOneCamera,
    /// All alerts, beginning with a snapshot.
    Snapshot,
}

impl Wants {
    /// The subscribers of a run: what they want, and whether they read slowly.
    pub fn all() -> Vec<(Self, bool)> {
        use Wants::{AlertsOfOneCamera, Events, Everything, HighAlerts, Snapshot};
        vec![
            (Everything, false),
            (Everything, false),
            (Everything, true),
            (Events, false),
            (Events, true),
            (HighAlerts, false),
            (HighAlerts, true),
            (AlertsOfOneCamera, false),
            (AlertsOfOneCamera, true),
            (Snapshot, false),
            (Snapshot, true),
        ]
    }

    /// Whether it wants a change, by what is stored of it.
    pub fn wants(self, what: &What, alert: Option<&Alert>) -> bool {
        match (self, what) {
            (Self::Everything | Self::Events, What::Event(_))
            | (Self::Everything | Self::Snapshot, What::Alert(..)) => true,
            (Self::HighAlerts, What::Alert(..)) => alert.is_some_and(|a| a.severity == "high"),
            (Self::AlertsOfOneCamera, What::Alert(..)) => alert.is_some_and(|a| a.camera == CAMERAS[0]),
            (Self::Events, What::Alert(..)) | (_, What::Event(_)) => false,
        }
    }

    fn request(self) -> pb::WatchRequest {
        let topics: &[Topic] = match self {
            Self::Everything => &[Topic::Events, Topic::Alerts],
            Self::Events => &[Topic::Events],
            Self::HighAlerts | Self::AlertsOfOneCamera | Self::Snapshot => &[Topic::Alerts],
        };
        let alert_filter = match self {
            Self::HighAlerts => {
                Some(pb::AlertWatchFilter { severities: vec![Severity::High.into()], ..Default::default() })
            }
            Self::AlertsOfOneCamera => {
                Some(pb::AlertWatchFilter { camera_ids: vec![CAMERAS[0].into()], ..Default::default() })
            }
            Self::Everything | Self::Events | Self::Snapshot => None,
        };
        pb::WatchRequest {
            topics: topics.iter().map(|topic| (*topic).into()).collect(),
            alert_filter,
            heartbeat_interval: Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 }),
            ..Default::default()
        }
    }
}

/// A subscriber at work.
#[derive(Debug)]
pub struct Subscriber {
    run: Arc<Run>,
    random: fastrand::Rng,
    slow: bool,
    /// Of the last response that it has recorded. Empty before the first one.
    cursor: String,
    /// The events that it has been sent something of.
    events: HashSet<i64>,
    pub history: History,
}

impl Subscriber {
    pub fn new(run: Arc<Run>, at: usize, wants: Wants, slow: bool) -> Self {
        let speed = if slow { "slow" } else { "fast" };
        Self {
            random: random(run.seed, 100 + at),
            run,
            slow,
            cursor: String::new(),
            events: HashSet::new(),
            history: History::new(format!("{wants:?} {at} ({speed})"), wants),
        }
    }

    /// Watches until the last event has come, over any number of connections.
    pub async fn run(&mut self) {
        if self.history.wants == Wants::Snapshot {
            // When there is something to take a snapshot of.
            sleep(Duration::from_millis(self.random.u64(200..1_500))).await;
        }
        loop {
            match self.watch().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(status) if status.code() == Code::OutOfRange => self.fell_out(&status),
                Err(status) => {
                    let expected = [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled];
                    if !expected.contains(&status.code()) {
                        self.history.complaints.push(format!("was refused: {status:?}"));
                    }
                    sleep(Duration::from_millis(10)).await;
                }
            }
            self.history.reconnects += 1;
            if self.slow && self.run.last_event.borrow().is_none() {
                // Long enough away for the feed to be pruned, if it is.
                sleep(Duration::from_millis(self.random.u64(0..1_500))).await;
            }
        }
    }

    fn fell_out(&mut self, status: &Status) {
        let details = status.get_error_details();
        let metadata = &details.error_info().expect("a reason").metadata;
        let lost = metadata["lost_changes"].parse().unwrap();
        self.cursor.clone_from(&metadata["earliest_cursor"]);
        self.history.steps.push(Step::FellOut(lost));
    }

    /// One connection. Returns whether the end was reached.
    async fn watch(&mut self) -> Result<bool, Status> {
        let server = self.random.usize(0..8);
        let Some(channel) = self.run.servers.connect(server).await else {
            sleep(Duration::from_millis(10)).await;
            return Ok(false);
        };
        let mut request = self.history.wants.request();
        let in_snapshot = self.cursor.is_empty() && self.history.wants == Wants::Snapshot;
        if in_snapshot {
            request.start = WatchStart::Snapshot.into();
            self.history.snapshot = Some(Vec::new());
        } else if self.cursor.is_empty() {
            request.start = WatchStart::Earliest.into();
        } else {
            request.cursor.clone_from(&self.cursor);
        }
        let mut monitor = MonitorServiceClient::new(channel);
        let mut responses = monitor.watch(request).await?.into_inner();
        // Now and then one breaks off by itself.
        let mut left = self.random.u32(if self.slow { 20..200 } else { 20..2_000 });
        loop {
            // A server that was killed may be noticed late.
            let next = timeout(Duration::from_secs(5), responses.message()).await;
            let Some(response) = next.map_err(|_| Status::unavailable("silence"))?? else {
                return Ok(false);
            };
            if self.record(response) {
                return Ok(true);
            }
            // A snapshot that is broken off begins anew, and would never end.
            if !self.cursor.is_empty() {
                left -= 1;
            }
            if left == 0 {
                return Ok(false);
            }
            self.dawdle().await;
        }
    }

    async fn dawdle(&mut self) {
        if !self.slow {
            return;
        }
        let pause = match self.random.u16(0..400) {
            0 => self.random.u64(300..1_500),
            1..=100 => self.random.u64(0..4),
            _ => return,
        };
        // Whoever writes has to wait for nobody; at the end nobody has time.
        if self.run.last_event.borrow().is_none() {
            sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Records a response. Returns whether it is the end.
    fn record(&mut self, response: pb::WatchResponse) -> bool {
        if !response.cursor.is_empty() {
            self.cursor = response.cursor;
        }
        let (what, event_id) = match response.update {
            Some(Update::Event(change)) => {
                let event = change.event.unwrap();
                (What::Event(event.id), event.id)
            }
            Some(Update::Alert(change)) => {
                let existing = change.kind() == pb::AlertChangeKind::Existing;
                let alert = change.alert.unwrap();
                let version = i64::from(alert.version_id);
                if existing {
                    self.events.insert(alert.event_id);
                    let snapshot = self.history.snapshot.get_or_insert_default();
                    snapshot.push((alert.id, version));
                    return false;
                }
                (What::Alert(alert.id, version), alert.event_id)
            }
            Some(Update::Heartbeat(_)) => {
                // Everything is there once the last event is, and all that came of it: a connection
                // that broke off in between begins with a heartbeat, too.
                let last = *self.run.last_event.borrow();
                let whole = match self.history.steps.last() {
                    Some(Step::Sent(sent)) => sent.commit_end,
                    Some(Step::FellOut(_)) => false,
                    // All of it may be in the snapshot.
                    None => !self.cursor.is_empty(),
                };
                return whole && last.is_some_and(|last| self.events.contains(&last));
            }
            Some(Update::SnapshotEnd(_)) => return false,
            other => {
                let complaint = format!("was sent what it does not want: {other:?}");
                self.history.complaints.push(complaint);
                return false;
            }
        };
        self.events.insert(event_id);
        let Some(commit) = response.commit else {
            let complaint = format!("{what:?} came without a commit");
            self.history.complaints.push(complaint);
            return false;
        };
        self.history.steps.push(Step::Sent(Sent { what, commit, commit_end: response.commit_end }));
        false
    }
}
