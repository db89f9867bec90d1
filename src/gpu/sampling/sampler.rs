//! The thread that samples one GPU: on a steady schedule, and again and again when it fails.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use super::{
    inference::Detections,
    pulse::Pulse,
    schedule::{Backoff, Stop, Ticks},
    sysfs::RuntimeStatus,
};
use crate::{
    gpu::{
        columns, events,
        health::condition::Conditions,
        live::LiveGpus,
        nvml::{
            Failure, Library, Samples, Trouble, Which,
            plan::{Plan, Tiers},
        },
        store::queue::{Queue, Row},
    },
    pb,
};

/// Time after which a sampler that waits looks whether it is to end or to try again.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// What the threads of this host share.
#[derive(Debug)]
pub(crate) struct Host {
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
pub(crate) struct Sampler {
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

/// Why the sampling of a GPU has ended.
enum End {
    Stopped,
    Failed(Failure),
    Asleep,
}

impl Sampler {
    pub(crate) fn new(
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

    /// Samples until the stop, or until another GPU has taken the place of this one.
    pub(crate) fn run(mut self) {
        self.run_until_end();
        if self.pulse.is_replaced() && !self.host.stop.is_set() {
            self.leave();
        }
    }

    fn run_until_end(&mut self) {
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
            self.pulse.take_nudge();
            while Instant::now() < retry && !self.pulse.take_nudge() {
                // A GPU that nobody has ever seen has no samples, not even empty ones.
                let until = if self.known.is_empty() {
                    retry.min(Instant::now() + CHECK_EVERY)
                } else {
                    ticks.next(Instant::now())
                };
                if self.wait_until(until) {
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
            if self.wait_until(ticks.next(Instant::now())) {
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
            if self.pulse.is_replaced() {
                return End::Stopped;
            }
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
        self.pulse.set_asleep(true);
        let stops = self.sleep(ticks);
        self.pulse.set_asleep(false);
        stops
    }

    fn sleep(&mut self, ticks: &mut Ticks) -> bool {
        while self.is_asleep() {
            if let Some(gpu) = self.known.first() {
                self.host.conditions.asleep(&gpu.uuid);
            }
            self.publish_nothing_for(pb::AbsentReason::Asleep);
            if self.wait_until(ticks.next(Instant::now())) {
                return true;
            }
        }
        false
    }

    /// Waits until `at`. Returns whether the sampler has to end.
    fn wait_until(&self, at: Instant) -> bool {
        loop {
            let until = at.min(Instant::now() + CHECK_EVERY);
            if self.host.stop.wait_until(until) || self.pulse.is_replaced() {
                return true;
            }
            if until == at {
                return false;
            }
        }
    }

    /// Tells that the GPU is gone, as of any that is lost.
    fn leave(&self) {
        self.pulse.set_works(false);
        let Some(gpu) = self.known.first() else {
            return;
        };
        let failure = Failure {
            text: "another GPU has its index".into(),
            reason: pb::AbsentReason::GpuLost,
            everywhere: false,
            trouble: Trouble::Lost,
        };
        self.host.conditions.failed(&gpu.uuid, &failure);
        self.publish_nothing_for(failure.reason);
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
        self.pulse.introduce(&name, &gpu.uuid);
        if let Some(Ok(index)) = gpu.gpu_index.map(u32::try_from) {
            self.pulse.set_index(index);
        }
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
        self.pulse.set_works(false);
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
        self.pulse.set_works(true);
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
                if self.live.is_refused(&gpu.uuid) {
                    continue;
                }
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
    pub(crate) fn publish_timed_out(&self, uuid: &str) {
        let silent = self.live.whole_and_parts(uuid);
        let nothing = silent
            .iter()
            .map(|gpu| (gpu, columns::nothing_of(gpu, pb::AbsentReason::TimedOut)));
        self.publish(nothing);
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<String>> {
        self.taken.lock()
    }
}
