//! Health of the server and its services, as reported by `grpc.health.v1`.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health as HealthService, HealthServer},
    server::{HealthReporter, health_reporter},
};

use crate::{
    error::StorageFault,
    feed::holders::{Holder, UNHEALTHY_FROM},
    time_zones,
};

/// Services that depend on the database only.
const SERVICES: [&str; 12] = [
    "watchpost.v1.AlertRuleService",
    "watchpost.v1.AlertService",
    "watchpost.v1.CameraService",
    "watchpost.v1.CameraZoneService",
    "watchpost.v1.EventService",
    "watchpost.v1.JobQueueService",
    "watchpost.v1.JobScheduleService",
    "watchpost.v1.JobService",
    "watchpost.v1.JobTypeService",
    "watchpost.v1.JobWorkerService",
    "watchpost.v1.NotificationChannelService",
    "watchpost.v1.SilenceService",
];

/// Service that also depends on the change feed.
const FEED_SERVICE: &str = "watchpost.v1.MonitorService";

/// Service that also depends on NVML.
const GPU_SERVICE: &str = "watchpost.v1.GpuStatsService";

/// Service that also depends on the encryption key.
const DELIVERY_SERVICE: &str = "watchpost.v1.DeliveryService";

/// Name of the server as a whole.
const OVERALL: &str = "";

/// State of the components on which health depends.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "parts that fail by themselves"
)]
struct State {
    /// True if the database is reachable and migrated.
    database: bool,
    /// Fault that prevents writes to the database.
    storage: Option<StorageFault>,
    /// True if an open transaction has blocked the change feed for too long.
    feed_is_held: bool,
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
    told: watch::Receiver<State>,
    feed_holder: watch::Sender<Option<Holder>>,
    /// Notes for operators, by component.
    notes: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Health {
    /// Creates a health state in which no service is serving, and the gRPC service.
    pub fn new() -> (Self, HealthServer<impl HealthService>) {
        let (reporter, service) = health_reporter();
        let (state, heard) = watch::channel(State::default());
        let (told, telling) = watch::channel(State {
            stopping: true,
            ..State::default()
        });
        tokio::spawn(tell(reporter, heard, told));
        (
            Self {
                state,
                told: telling,
                feed_holder: watch::Sender::new(None),
                notes: Arc::default(),
            },
            service,
        )
    }

    /// Sets the reachability of the database.
    pub fn database(&self, serving: bool) {
        self.set(|state| state.database = serving);
    }

    /// Sets the fault that prevents writes; `None` if the database can be written.
    pub fn storage(&self, fault: Option<StorageFault>) {
        self.set(|state| state.storage = fault);
    }

    /// Sets the transaction that blocks the change feed, if one does.
    pub fn feed_holder(&self, holder: Option<Holder>) {
        let is_held = holder
            .as_ref()
            .is_some_and(|holder| holder.age >= UNHEALTHY_FROM);
        self.feed_holder.send_replace(holder);
        self.set(|state| state.feed_is_held = is_held);
    }

    /// Returns the transaction that blocks the change feed, after ten seconds.
    pub fn feed_is_held_by(&self) -> Option<Holder> {
        self.feed_holder.borrow().clone()
    }

    /// Sets the state of GPU sampling.
    pub fn gpus(&self, serving: bool) {
        self.set(|state| state.gpus = serving);
    }

    /// Sets every service to not serving, in force when the call returns.
    pub async fn stopping(&self) {
        self.set(|state| state.stopping = true);
        self.settled().await;
    }

    /// Returns the reported state of the server, or the reason if not serving.
    pub fn serving(&self) -> Result<(), String> {
        let told = *self.told.borrow();
        match told {
            State { stopping: true, .. } => Err("the server is stopping".into()),
            State {
                database: false, ..
            } => Err("the database is away, or not yet prepared".into()),
            State {
                storage: Some(fault),
                ..
            } => Err(format!("the database cannot be written: {fault}")),
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
    pub fn secrets(&self, readable: bool, note: Option<String>) {
        self.note("secrets", note);
        self.set(|state| state.secrets_unreadable = !readable);
    }

    /// Sets or removes the note of a component.
    pub(crate) fn note(&self, part: &'static str, note: Option<String>) {
        let mut notes = self.notes();
        match note {
            Some(note) => notes.insert(part, note),
            None => notes.remove(part),
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
    pub async fn settled(&self) {
        // The state may change meanwhile, and only the newest state is reported. The reporting task
        // ends with the runtime only.
        let is_newest = |told: &State| *told == *self.state.borrow();
        let _ = self.told.clone().wait_for(is_newest).await;
    }

    fn set(&self, change: impl Fn(&mut State)) {
        self.state.send_if_modified(|state| {
            let before = *state;
            change(state);
            *state != before
        });
    }
}

async fn tell(
    reporter: HealthReporter,
    mut heard: watch::Receiver<State>,
    told: watch::Sender<State>,
) {
    let status = |serving: bool| {
        if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        }
    };
    loop {
        let state = *heard.borrow_and_update();
        let serving = state.database && state.storage.is_none() && !state.stopping;
        for service in SERVICES.into_iter().chain([OVERALL]) {
            reporter.set_service_status(service, status(serving)).await;
        }
        reporter
            .set_service_status(FEED_SERVICE, status(serving && !state.feed_is_held))
            .await;
        reporter
            .set_service_status(GPU_SERVICE, status(serving && state.gpus))
            .await;
        reporter
            .set_service_status(
                DELIVERY_SERVICE,
                status(serving && !state.secrets_unreadable),
            )
            .await;
        told.send_replace(state);
        if heard.changed().await.is_err() {
            return;
        }
    }
}
