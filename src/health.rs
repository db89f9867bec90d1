//! Health of the server and its services, as reported by `grpc.health.v1`.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use prost_types::FileDescriptorSet;
use tokio::sync::watch;
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health as HealthService, HealthServer},
    server::{HealthReporter, health_reporter},
};

use crate::{
    error::StorageFault,
    feed::blockers::{Blocker, UNHEALTHY_AGE},
    pb, time_zones,
};

/// Service that also depends on the change feed.
const FEED_SERVICE: &str = "watchpost.v1.MonitorService";

/// Service that also depends on NVML.
const GPU_SERVICE: &str = "watchpost.v1.GpuStatsService";

/// Service that also depends on the encryption key.
const DELIVERY_SERVICE: &str = "watchpost.v1.DeliveryService";

/// Package of the services of the API.
const PACKAGE: &str = "watchpost.v1";

/// Name of the server as a whole.
const OVERALL: &str = "";

/// Names of the server as a whole and of all services of the API.
fn services() -> Vec<String> {
    // The build made the descriptors, so that they always decode.
    let files = FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET).unwrap_or_default().file;
    let mut names = vec![OVERALL.to_string()];
    for file in files.iter().filter(|file| file.package() == PACKAGE) {
        names.extend(file.service.iter().map(|service| format!("{PACKAGE}.{}", service.name())));
    }
    names
}

/// State of the components on which health depends.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "parts that fail by themselves")]
struct State {
    /// True if the database is reachable and migrated.
    database: bool,
    /// Fault that prevents writes to the database.
    storage: Option<StorageFault>,
    /// True if an open transaction has blocked the change feed for too long.
    is_feed_blocked: bool,
    /// True if GPUs are sampled.
    gpus: bool,
    /// True if the secrets of some channel cannot be decrypted.
    secrets_unreadable: bool,
    stopping: bool,
}

/// Collects the state of components and reports health. Clones share the state.
#[derive(Debug, Clone)]
pub struct Health {
    state: watch::Sender<State>,
    reported: watch::Receiver<State>,
    feed_blocker: watch::Sender<Option<Blocker>>,
    /// Notes for operators, by component.
    notes: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Health {
    /// Creates a health state in which no service is serving, and the gRPC service.
    pub fn new() -> (Self, HealthServer<impl HealthService>) {
        let (reporter, service) = health_reporter();
        let (state, states) = watch::channel(State::default());
        let (reported, reported_states) = watch::channel(State { stopping: true, ..State::default() });
        tokio::spawn(report(reporter, states, reported));
        (
            Self { state, reported: reported_states, feed_blocker: watch::Sender::new(None), notes: Arc::default() },
            service,
        )
    }

    /// Sets the reachability of the database.
    pub fn set_database(&self, serving: bool) {
        self.set(|state| state.database = serving);
    }

    /// Sets the fault that prevents writes; `None` if the database can be written.
    pub fn set_storage(&self, fault: Option<StorageFault>) {
        self.set(|state| state.storage = fault);
    }

    /// Sets the transaction that blocks the change feed, if one does.
    pub fn set_feed_blocker(&self, blocker: Option<Blocker>) {
        let is_blocked = blocker.as_ref().is_some_and(|blocker| blocker.age >= UNHEALTHY_AGE);
        self.feed_blocker.send_replace(blocker);
        self.set(|state| state.is_feed_blocked = is_blocked);
    }

    /// Returns the transaction that blocks the change feed, after ten seconds.
    pub fn feed_blocker(&self) -> Option<Blocker> {
        self.feed_blocker.borrow().clone()
    }

    /// Sets the state of GPU sampling.
    pub fn set_gpus(&self, serving: bool) {
        self.set(|state| state.gpus = serving);
    }

    /// Sets every service to not serving, in force when the call returns.
    pub async fn set_stopping(&self) {
        self.set(|state| state.stopping = true);
        self.wait_reported().await;
    }

    /// Returns the reported state of the server, or the reason if not serving.
    pub fn serving(&self) -> Result<(), String> {
        let reported = *self.reported.borrow();
        match reported {
            State { stopping: true, .. } => Err("the server is stopping".into()),
            State { database: false, .. } => Err("the database is unreachable or not yet prepared".into()),
            State { storage: Some(fault), .. } => Err(format!("the database cannot be written: {fault}")),
            _ => Ok(()),
        }
    }

    /// Returns facts for operators, one per line.
    pub fn details(&self) -> Vec<String> {
        let zones = format!("time zones: {}", time_zones::source());
        let notes = self.notes();
        [zones].into_iter().chain(notes.values().cloned()).collect()
    }

    /// Sets the readability of channel secrets, and a note for operators.
    pub fn set_secrets(&self, readable: bool, note: Option<String>) {
        self.set_note("secrets", note);
        self.set(|state| state.secrets_unreadable = !readable);
    }

    /// Sets or removes the note of a component.
    pub(crate) fn set_note(&self, component: &'static str, note: Option<String>) {
        let mut notes = self.notes();
        match note {
            Some(note) => notes.insert(component, note),
            None => notes.remove(component),
        };
    }

    fn notes(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.notes.lock()
    }

    /// Returns true if no fault is known that prevents writes to the database.
    pub fn is_writable(&self) -> bool {
        let state = self.state.borrow();
        state.database && state.storage.is_none()
    }

    /// Returns true if the database is reachable and migrated.
    pub fn has_database(&self) -> bool {
        self.state.borrow().database
    }

    /// Waits until the newest state is reported.
    pub async fn wait_reported(&self) {
        // The state may change meanwhile, and only the newest state is reported. The reporting task
        // ends with the runtime only.
        let is_newest = |reported: &State| *reported == *self.state.borrow();
        let _ = self.reported.clone().wait_for(is_newest).await;
    }

    fn set(&self, change: impl Fn(&mut State)) {
        self.state.send_if_modified(|state| {
            let previous = *state;
            change(state);
            *state != previous
        });
    }
}

async fn report(reporter: HealthReporter, mut states: watch::Receiver<State>, reported: watch::Sender<State>) {
    let services = services();
    let status = |serving: bool| {
        if serving { ServingStatus::Serving } else { ServingStatus::NotServing }
    };
    loop {
        let state = *states.borrow_and_update();
        let serving = state.database && state.storage.is_none() && !state.stopping;
        for service in &services {
            let is_serving = serving
                && match service.as_str() {
                    FEED_SERVICE => !state.is_feed_blocked,
                    GPU_SERVICE => state.gpus,
                    DELIVERY_SERVICE => !state.secrets_unreadable,
                    _ => true,
                };
            reporter.set_service_status(service, status(is_serving)).await;
        }
        reported.send_replace(state);
        if states.changed().await.is_err() {
            return;
        }
    }
}
