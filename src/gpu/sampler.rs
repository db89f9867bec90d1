//! The thread that samples one GPU: on a steady schedule, and again and again when it fails.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use super::{
    columns,
    condition::Conditions,
    events,
    inference::Detections,
    live::LiveGpus,
    nvml::{Failure, Library, Samples, Trouble, Which},
    plan::{Plan, Tiers},
    queue::{Queue, Row},
    schedule::{Backoff, Stop, Ticks},
    sysfs::RuntimeStatus,
};
use crate::pb;

/// How long a round of calls may take before the GPU counts as hanging: whoever watches is to know
/// it two seconds after it began.
pub(super) const HANGS_AFTER: Duration = Duration::from_millis(1_500);

/// What the threads of this host share.
#[derive(Debug)]
pub(super) struct Host {
    pub library: Library,
    pub name: String,
    pub interval: Duration,
    pub tiers: Tiers,
    /// Where the kernel tells of devices.
    pub sysfs: PathBuf,
    pub live: LiveGpus,
    pub queue: Arc<Queue>,
    pub conditions: Arc<Conditions>,
    pub events: Arc<events::Queue>,
    /// What this process has ingested, for `inference_fps`.
    pub detections: Detections,
    /// How many GPUs there are, MIG instances not counted.
    pub count: AtomicU32,
    pub stop: Stop,
    /// The UUIDs of the GPUs that have a sampler.
    pub taken: Mutex<HashSet<String>>,
}

/// The sampler of one GPU.
pub(super) struct Sampler {
    host: Arc<Host>,
    index: u32,
    pulse: Arc<Pulse>,
    /// Told once, when it is known which GPU this is.
    found: Option<mpsc::Sender<(u32, Result<String, String>)>>,
    /// What was sampled last: the GPU, then its MIG instances.
    known: Vec<Arc<pb::Gpu>>,
    /// Where the kernel tells whether it sleeps, once it is known where the GPU is.
    runtime_status: Option<RuntimeStatus>,
    /// Set from the first failure to the next success.
    failing: Option<(Failure, Instant)>,
}

/// What others may know of a sampler, whatever its thread is stuck in.
#[derive(Debug)]
pub(super) struct Pulse {
    started: Instant,
    /// When the present calls began, in milliseconds after `started`; `IDLE` between calls.
    busy_since: AtomicU64,
    works: AtomicBool,
    /// The name of the GPU for people.
    name: Mutex<String>,
    /// The GPU, once it is known which.
    uuid: OnceLock<String>,
}

const IDLE: u64 = u64::MAX;

/// Why the sampling of a GPU has ended.
enum End {
    Stopped,
    Failed(Failure),
    Asleep,
}

impl Sampler {
    pub(super) fn new(
        host: Arc<Host>,
        index: u32,
        pulse: Arc<Pulse>,
        found: mpsc::Sender<(u32, Result<String, String>)>,
    ) -> Self {
        Self {
            host,
            index,
            pulse,
            found: Some(found),
            known: Vec::new(),
            runtime_status: None,
            failing: None,
        }
    }

    /// Samples until the stop.
    pub(super) fn run(mut self) {
        let host = self.host.clone();
        // The driver has one lock for all GPUs: they take turns within the interval.
        let turn = host.interval.mul_f64(f64::from(self.index % 8) / 8.0);
        let mut ticks = Ticks::new(Instant::now() + turn, host.interval);
        let mut backoff = Backoff::default();
        loop {
            let failure = match self.sample_while_it_works(&mut ticks, &mut backoff) {
                End::Stopped => return,
                End::Failed(failure) => failure,
                // With NVML let go of: a GPU that it has open is kept awake.
                End::Asleep => {
                    if self.let_sleep(&mut ticks) {
                        return;
                    }
                    continue;
                }
            };
            let retry = Instant::now() + backoff.next();
            self.fail(failure);
            while Instant::now() < retry {
                // A GPU that nobody has ever seen has no samples, not even empty ones.
                let until = if self.known.is_empty() {
                    retry
                } else {
                    ticks.next(Instant::now())
                };
                if host.stop.wait_until(until) {
                    return;
                }
                self.publish_nothing();
            }
        }
    }

    fn sample_while_it_works(&mut self, ticks: &mut Ticks, backoff: &mut Backoff) -> End {
        let host = self.host.clone();
        // It may take seconds, and is no call about this GPU.
        let session = match host.library.open() {
            Ok(session) => session,
            Err(failure) => return End::Failed(failure),
        };
        self.pulse.begin();
        let failed = |failure: Failure| {
            if failure.everywhere {
                host.library.discard(&session);
            }
            End::Failed(failure)
        };
        let which = self.known.first().map_or(Which::Index(self.index), |gpu| {
            Which::Uuid(gpu.uuid.clone())
        });
        let (tiers, interval) = (host.tiers, host.interval);
        let plan = move || Plan::new(tiers, interval);
        let mut gpu = match session.gpu(&which, &host.name, plan) {
            Ok(gpu) => gpu,
            Err(failure) => return failed(failure),
        };
        if let Err(failure) = self.introduce(gpu.facts()) {
            return failed(failure);
        }
        loop {
            self.pulse.end();
            if host.stop.wait_until(ticks.next(Instant::now())) {
                return End::Stopped;
            }
            if self.is_asleep() {
                return End::Asleep;
            }
            self.pulse.begin();
            if host.conditions.take_relist(&gpu.facts().uuid) {
                gpu.list_instances_anew();
            }
            let samples = gpu.sample(host.live.costs());
            self.pulse.end();
            let failure = samples.failure.clone();
            if failure.is_none() {
                backoff.reset();
                self.recover();
                let samples = samples.stats.iter().map(|(gpu, stats)| (gpu, stats));
                host.conditions.sampled(samples);
            }
            self.publish(samples);
            if let Some(failure) = failure {
                return failed(failure);
            }
        }
    }

    fn is_asleep(&mut self) -> bool {
        let status = self.runtime_status.as_mut();
        status.is_some_and(|status| status.is_asleep(Instant::now()))
    }

    /// Publishes that the GPU sleeps for as long as it does. Returns whether to stop.
    fn let_sleep(&mut self, ticks: &mut Ticks) -> bool {
        while self.is_asleep() {
            if let Some(gpu) = self.known.first() {
                self.host.conditions.asleep(&gpu.uuid);
            }
            self.publish_nothing_for(pb::AbsentReason::Asleep);
            if self.host.stop.wait_until(ticks.next(Instant::now())) {
                return true;
            }
        }
        false
    }

    fn publish(&mut self, samples: Samples) {
        let host = &self.host;
        let (now, stats): (Vec<_>, Vec<_>) = samples.stats.into_iter().unzip();
        for gone in self
            .known
            .iter()
            .filter(|known| now.iter().all(|gpu| gpu.uuid != known.uuid))
        {
            host.live.forget(&gone.uuid);
        }
        self.known = now;
        host.publish(self.known.iter().zip(stats));
    }

    /// Publishes that there is nothing to be had of the GPU.
    fn publish_nothing(&self) {
        if let Some((failure, _)) = &self.failing {
            self.publish_nothing_for(failure.reason);
        }
    }

    fn publish_nothing_for(&self, reason: pb::AbsentReason) {
        let nothing = self
            .known
            .iter()
            .map(|gpu| (gpu, columns::nothing_of(gpu, reason)));
        self.host.publish(nothing);
    }

    /// Says which GPU this is. Fails if another sampler has it, as indexes may change.
    fn introduce(&mut self, gpu: &Arc<pb::Gpu>) -> Result<(), Failure> {
        if self.known.is_empty() && !self.host.taken().insert(gpu.uuid.clone()) {
            let text = format!("{} is sampled under another index", gpu.uuid);
            return Err(Failure {
                text,
                reason: pb::AbsentReason::NotSampled,
                everywhere: false,
                trouble: Trouble::Other,
            });
        }
        let name = gpu.name.as_deref().unwrap_or("a GPU without a name");
        let name = format!("{name} ({})", gpu.uuid);
        self.pulse
            .name
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&name);
        let _ = self.pulse.uuid.set(gpu.uuid.clone());
        self.host.conditions.introduce(gpu);
        let bus_id = gpu.pci_bus_id.as_deref();
        self.runtime_status = bus_id.and_then(|id| RuntimeStatus::of(&self.host.sysfs, id));
        if self.known.is_empty() {
            self.known = vec![gpu.clone()];
        }
        if let Some(found) = self.found.take() {
            // Nobody listens any more if this took long.
            let _ = found.send((self.index, Ok(name)));
        }
        Ok(())
    }

    /// Logs a failure, the first time that it is met.
    fn fail(&mut self, failure: Failure) {
        self.pulse.end();
        self.pulse.works.store(false, Ordering::Relaxed);
        if let Some(gpu) = self.known.first() {
            self.host.conditions.failed(&gpu.uuid, &failure);
        }
        if let Some(found) = self.found.take() {
            let _ = found.send((self.index, Err(failure.text.clone())));
        }
        let since = match &self.failing {
            Some((before, since)) if before.text == failure.text => *since,
            before => {
                let gpu = self.pulse.name();
                tracing::warn!(
                    gpu.name = gpu,
                    reason = failure.text,
                    "a GPU cannot be sampled; it is tried again"
                );
                before
                    .as_ref()
                    .map_or_else(Instant::now, |(_, since)| *since)
            }
        };
        self.failing = Some((failure, since));
    }

    fn recover(&mut self) {
        self.pulse.works.store(true, Ordering::Relaxed);
        if let Some((_, since)) = self.failing.take() {
            let (gpu, failed_s) = (self.pulse.name(), since.elapsed().as_secs());
            tracing::info!(gpu.name = gpu, failed_s, "a GPU is sampled again");
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        if let Some(gpu) = self.known.first() {
            self.host.taken().remove(&gpu.uuid);
        }
    }
}

impl Host {
    /// Hands the samples to those who watch and to the writer, unless it has stored the last ones.
    fn publish<'a>(&self, samples: impl Iterator<Item = (&'a Arc<pb::Gpu>, pb::GpuStats)>) {
        self.stop.unless_set(|| {
            for (gpu, mut stats) in samples {
                self.live.introduce(gpu);
                if self.count.load(Ordering::Relaxed) == 1 {
                    self.detections.fill(&mut stats);
                }
                let (gpu, reading) = (gpu.clone(), self.live.publish(stats));
                self.queue.push(Row { gpu, reading });
            }
        });
    }

    /// Publishes that a GPU and its instances have not answered in time.
    pub(super) fn publish_timed_out(&self, uuid: &str) {
        let silent = self.live.whole_and_parts(uuid);
        let nothing = silent
            .iter()
            .map(|gpu| (gpu, columns::nothing_of(gpu, pb::AbsentReason::TimedOut)));
        self.publish(nothing);
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<String>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulse {
    pub(super) fn new(index: u32) -> Self {
        let name = Mutex::new(format!("GPU {index}"));
        Self {
            started: Instant::now(),
            busy_since: AtomicU64::new(IDLE),
            works: AtomicBool::new(false),
            name,
            uuid: OnceLock::new(),
        }
    }

    /// Whether the last sample was taken, and no call hangs.
    pub(super) fn works(&self) -> bool {
        self.works.load(Ordering::Relaxed) && !self.hangs()
    }

    /// Whether the calls that are being made do not come back.
    pub(super) fn hangs(&self) -> bool {
        let since = self.busy_since.load(Ordering::Relaxed);
        since != IDLE && self.started.elapsed() >= Duration::from_millis(since) + HANGS_AFTER
    }

    /// The name of the GPU for people.
    pub(super) fn name(&self) -> String {
        self.name
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The GPU, once it is known which.
    pub(super) fn uuid(&self) -> Option<&str> {
        self.uuid.get().map(String::as_str)
    }

    fn begin(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(0);
        self.busy_since.store(now, Ordering::Relaxed);
    }

    fn end(&self) {
        self.busy_since.store(IDLE, Ordering::Relaxed);
    }
}
