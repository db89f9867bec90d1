//! What `grpc.health.v1` says of the server and of each of its services.

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

/// The services that need the database, and nothing else.
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

/// The service that needs the change feed to go on as well.
const FEED_SERVICE: &str = "watchpost.v1.MonitorService";

/// The service that needs NVML as well.
const GPU_SERVICE: &str = "watchpost.v1.GpuStatsService";

/// The service that needs the key of secrets as well.
const DELIVERY_SERVICE: &str = "watchpost.v1.DeliveryService";

/// The server as a whole.
const OVERALL: &str = "";

/// What is known of the parts that health depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "parts that fail by themselves"
)]
struct State {
    /// Whether the database is there, and migrated.
    database: bool,
    /// Why the database cannot be written, if it cannot.
    storage: Option<StorageFault>,
    /// Whether an open transaction has held the change feed back for too long.
    feed_is_held: bool,
    /// Whether GPUs are sampled.
    gpus: bool,
    /// Whether the secrets of some channel cannot be decrypted.
    secrets_unreadable: bool,
    stopping: bool,
}

/// Hears how the parts are, and tells it. Clones share what they tell.
#[derive(Debug, Clone)]
pub struct Health {
    state: watch::Sender<State>,
    told: watch::Receiver<State>,
    feed_holder: watch::Sender<Option<Holder>>,
    /// What operators should know, by the part of the server.
    notes: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Health {
    /// A health in which nothing serves yet, and the service that tells it.
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

    /// The database has come or gone.
    pub fn database(&self, serving: bool) {
        self.set(|state| state.database = serving);
    }

    /// The database cannot be written for this reason, or can be written.
    pub fn storage(&self, fault: Option<StorageFault>) {
        self.set(|state| state.storage = fault);
    }

    /// This transaction holds the change feed back, or none does.
    pub fn feed_holder(&self, holder: Option<Holder>) {
        let is_held = holder
            .as_ref()
            .is_some_and(|holder| holder.age >= UNHEALTHY_FROM);
        self.feed_holder.send_replace(holder);
        self.set(|state| state.feed_is_held = is_held);
    }

    /// Transaction that holds the change feed back, once it has been open for a while.
    pub fn feed_is_held_by(&self) -> Option<Holder> {
        self.feed_holder.borrow().clone()
    }

    /// The sampling of GPUs has begun or ceased to work.
    pub fn gpus(&self, serving: bool) {
        self.set(|state| state.gpus = serving);
    }

    /// Nothing serves any more, from when this returns.
    pub async fn stopping(&self) {
        self.set(|state| state.stopping = true);
        self.settled().await;
    }

    /// Whether the server as a whole is told to be serving; if it is not, why.
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

    /// Facts of the server that operators look at, a line each.
    pub fn details(&self) -> Vec<String> {
        let zones = format!("time zones: {}", time_zones::source());
        let notes = self.notes();
        [zones].into_iter().chain(notes.values().cloned()).collect()
    }

    /// The secrets of all channels can be decrypted, or not; and what there is to say of it.
    pub fn secrets(&self, readable: bool, note: Option<String>) {
        self.note("secrets", note);
        self.set(|state| state.secrets_unreadable = !readable);
    }

    /// Notes what operators should know of a part, or that there is nothing any more.
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

    /// Whether the database can be written, as far as is known.
    pub fn is_writable(&self) -> bool {
        let state = self.state.borrow();
        state.database && state.storage.is_none()
    }

    /// Whether the database is there, and migrated.
    pub fn has_database(&self) -> bool {
        self.state.borrow().database
    }

    /// Waits until everything that was heard is told.
    pub async fn settled(&self) {
        // The state may change meanwhile, and only the newest one is told. The teller ends with the runtime only.
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
