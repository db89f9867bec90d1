//! Start and end of the threads and tasks that sample, store and report.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU32},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    events, health,
    live::LiveGpus,
    nvml, sampling,
    settings::{DISCOVERY_TIMEOUT, FLUSH_TIMEOUT, MAX_QUEUED_SAMPLES, Settings},
    store,
};
use crate::{db::Db, error::Chain};

/// Tasks that store the samples and events of this host.
#[derive(Debug)]
pub struct GpuTasks {
    /// Human-readable list of the GPUs, or the reason why there are none.
    pub summary: String,
    writer: JoinHandle<()>,
    events: JoinHandle<()>,
}

/// Starts to sample the GPUs of this host, until `shutdown`. Never fails: the threads retry
/// everything that cannot be reached. `health` is called with true when sampling begins to work and
/// with false when sampling stops working.
pub async fn start(
    settings: Settings,
    db: Db,
    live: LiveGpus,
    health: impl Fn(bool) + Send + Sync + 'static,
    shutdown: CancellationToken,
) -> GpuTasks {
    let queue = Arc::new(store::queue::SampleQueue::new(MAX_QUEUED_SAMPLES));
    let events = Arc::new(events::EventQueue::default());
    let stored = load_conditions(&db, &settings.host).await;
    let conditions = Arc::new(health::tracker::ConditionTracker::new(live.clone(), events.clone(), stored));
    let store = store::events::EventStore {
        db: db.clone(),
        host: settings.host.clone(),
        queue: events.clone(),
        conditions: conditions.clone(),
        counts: live.event_counts().clone(),
    };
    let claims = store::claims::LocalClaims::new(settings.host.clone(), live.clone());
    let (context, discovery) = launch(settings, live, queue.clone(), (conditions, events), health);
    let stop = move || context.stop.set();
    let events = tokio::spawn(store.run(shutdown.clone()));
    let writer = tokio::spawn(store::writer::run((db, claims), queue, shutdown, stop));
    GpuTasks { summary: await_discovery(discovery).await, writer, events }
}

/// Last reported condition of each GPU of this host. Empty if the database cannot be read.
async fn load_conditions(db: &Db, host: &str) -> HashMap<String, health::tracker::StoredCondition> {
    match store::events::load_conditions(db, host).await {
        Ok(stored) => stored,
        Err(error) => {
            let error = Chain(&error).to_string();
            tracing::warn!(
                error,
                "the last conditions of the GPUs cannot be read; changes since then are not reported"
            );
            HashMap::new()
        }
    }
}

/// Starts the threads that sample. Samples go to `live` and `queue`, events to `events`. The
/// receiver gets a human-readable result of the first discovery.
pub(super) fn launch(
    settings: Settings,
    live: LiveGpus,
    queue: Arc<store::queue::SampleQueue>,
    (conditions, events): (Arc<health::tracker::ConditionTracker>, Arc<events::EventQueue>),
    health: impl Fn(bool) + Send + Sync + 'static,
) -> (Arc<sampling::context::SamplingContext>, oneshot::Receiver<String>) {
    let context = Arc::new(sampling::context::SamplingContext {
        library: nvml::Library::new(settings.library),
        host_name: settings.host,
        // A schedule needs time to pass between two ticks.
        interval: settings.interval.max(Duration::from_millis(1)),
        tiers: settings.tiers,
        sysfs: settings.sysfs,
        live,
        queue,
        conditions,
        events,
        detections: settings.detections,
        gpu_count: AtomicU32::new(0),
        stop: sampling::schedule::StopSignal::default(),
        sampled_uuids: Mutex::default(),
    });
    if let Some(path) = settings.kernel_log {
        sampling::kernel_log::spawn(context.clone(), &path);
    }
    let (report, discovery) = oneshot::channel();
    sampling::fleet::spawn(context.clone(), health, report);
    (context, discovery)
}

/// Human-readable result of the first discovery, or a note that discovery takes longer than
/// [`DISCOVERY_TIMEOUT`].
pub(super) async fn await_discovery(discovery: oneshot::Receiver<String>) -> String {
    match timeout(DISCOVERY_TIMEOUT, discovery).await {
        Ok(Ok(summary)) => summary,
        Ok(Err(_)) => "no GPUs: the thread that looks for them could not be started".into(),
        Err(_) => {
            format!("NVML has not answered within {} s; GPUs are sampled when it does", DISCOVERY_TIMEOUT.as_secs())
        }
    }
}

impl GpuTasks {
    /// Waits at shutdown until the last samples and events are stored, at most 2 s
    /// and 200 ms.
    pub async fn finish(self) {
        let started = Instant::now();
        let flushed = async { tokio::join!(self.writer, self.events) };
        if timeout(FLUSH_TIMEOUT + Duration::from_millis(200), flushed).await.is_err() {
            let waited_ms = started.elapsed().as_millis();
            tracing::warn!(waited_ms, "the last GPU samples and events could not be stored in time");
        }
    }
}
