//! GPU telemetry: samples every GPU of this host through NVML, keeps the newest samples in
//! memory, stores all of them, and answers for both.
//!
//! `fleet` finds the GPUs and gives each a thread of its own, the `sampler`: calls into the
//! driver block, and one that never returns must cost no more than its thread. A sample goes to
//! `live` and, through a bounded `queue`, to the `writer`, or in an `agent` to its server, where
//! `report` takes it in. What happens to a GPU, and how it is, is found out by `condition` and becomes
//! `events`. That one host at a time tells of a GPU is kept by `claims`.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU32},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{db::Db, error::Chain, pb};

mod columns;
mod events;
mod health;
pub mod live;
mod nvml;
pub mod reporting;
mod sampling;
mod service;
mod store;

pub mod history;
pub mod throttle;

pub use self::{
    columns::has_values,
    events::Counts,
    live::{Condition, LiveGpus, Origin, Reading, present},
    nvml::{
        cost::{Cost, Costs},
        plan::Tiers,
    },
    reporting::report::Reports,
    sampling::inference::Detections,
    service::GpuStats,
};

/// How many samples are kept in memory at most, while they cannot be stored or reported.
pub const KEEP_AT_MOST: usize = 20_000;

/// How long the start of the server waits to hear which GPUs there are. They are sampled all the
/// same when they are found later.
const FOUND_WITHIN: Duration = Duration::from_secs(3);

/// How long the last rows may take at shutdown.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// What to sample, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The NVML library. By default the system looks for `libnvidia-ml.so.1`.
    pub library: Option<PathBuf>,
    /// The time from one sample of a GPU to the next.
    pub interval: Duration,
    /// The name of this host, kept with every sample.
    pub host: String,
    /// How often calls are made, and what they may cost.
    pub tiers: Tiers,
    /// The kernel log, where XIDs are. `None`: NVML only is asked for them.
    pub kernel_log: Option<PathBuf>,
    /// Where the kernel tells of devices, mostly `/sys`.
    pub sysfs: PathBuf,
    /// What this process ingests, for `inference_fps`.
    pub detections: Detections,
}

/// The samplers at work.
#[derive(Debug)]
pub struct Running {
    /// Which GPUs there are, or why there are none: for people.
    pub found: String,
    writer: JoinHandle<()>,
    events: JoinHandle<()>,
}

/// A value of a sample, or why it is absent.
type Value<T> = Result<T, pb::AbsentReason>;

/// Starts to sample the GPUs of this host, until `shutdown`. Never fails: what cannot be reached is
/// tried again later, and `health` hears whenever sampling begins to work or ceases to.
pub async fn start(
    settings: Settings,
    db: Db,
    live: LiveGpus,
    health: impl Fn(bool) + Send + Sync + 'static,
    shutdown: CancellationToken,
) -> Running {
    let queue = Arc::new(store::queue::Queue::of(KEEP_AT_MOST));
    let events = Arc::new(events::Queue::default());
    let stored = stored(&db, &settings.host).await;
    let conditions = health::condition::Conditions::new(live.clone(), events.clone(), stored);
    let conditions = Arc::new(conditions);
    let store = store::events::Store {
        db: db.clone(),
        host: settings.host.clone(),
        queue: events.clone(),
        conditions: conditions.clone(),
        counts: live.events().clone(),
    };
    let claims = store::claims::Local::new(settings.host.clone(), live.clone());
    let (host, found) = launch(settings, live, queue.clone(), (conditions, events), health);
    let stop = move || host.stop.set();
    let events = tokio::spawn(store.run(shutdown.clone()));
    let writer = tokio::spawn(store::writer::run((db, claims), queue, shutdown, stop));
    Running {
        found: hear(found).await,
        writer,
        events,
    }
}

/// How the GPUs of this host were, as far as it can be found out.
async fn stored(db: &Db, host: &str) -> HashMap<String, health::condition::Stored> {
    match store::events::stored(db, host).await {
        Ok(stored) => stored,
        Err(error) => {
            let error = Chain(&error).to_string();
            tracing::warn!(
                error,
                "it cannot be read how the GPUs were; changes since are not told"
            );
            HashMap::new()
        }
    }
}

/// Starts the threads, whose samples go to `live` and `queue`, and what happens to `happening`. What
/// they have found is heard.
fn launch(
    settings: Settings,
    live: LiveGpus,
    queue: Arc<store::queue::Queue>,
    happening: (Arc<health::condition::Conditions>, Arc<events::Queue>),
    health: impl Fn(bool) + Send + Sync + 'static,
) -> (Arc<sampling::sampler::Host>, oneshot::Receiver<String>) {
    let (conditions, events) = happening;
    let host = Arc::new(sampling::sampler::Host {
        library: nvml::Library::new(settings.library),
        name: settings.host,
        // A schedule needs time to pass between two ticks.
        interval: settings.interval.max(Duration::from_millis(1)),
        tiers: settings.tiers,
        sysfs: settings.sysfs,
        live,
        queue,
        conditions,
        events,
        detections: settings.detections,
        count: AtomicU32::new(0),
        stop: sampling::schedule::Stop::default(),
        taken: Mutex::default(),
    });
    if let Some(path) = settings.kernel_log {
        sampling::kernel_log::spawn(host.clone(), &path);
    }
    let (report, found) = oneshot::channel();
    sampling::fleet::spawn(host.clone(), health, report);
    (host, found)
}

/// Which GPUs there are, or why there are none: for people.
async fn hear(found: oneshot::Receiver<String>) -> String {
    match timeout(FOUND_WITHIN, found).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => "no GPUs: the thread that looks for them could not be started".into(),
        Err(_) => format!(
            "NVML has not answered within {} s; GPUs are sampled when it does",
            FOUND_WITHIN.as_secs()
        ),
    }
}

impl Running {
    /// Waits, after the shutdown has begun, until the last samples and events are stored, but not
    /// for long.
    pub async fn finish(self) {
        let started = Instant::now();
        let stored = async { tokio::join!(self.writer, self.events) };
        if timeout(FLUSH_WITHIN + Duration::from_millis(200), stored)
            .await
            .is_err()
        {
            let waited_ms = started.elapsed().as_millis();
            tracing::warn!(
                waited_ms,
                "the last GPU samples and events could not be stored in time"
            );
        }
    }
}
