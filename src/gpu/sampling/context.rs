//! State that the sampling threads of this host share.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use super::{inference::Detections, schedule::StopSignal};
use crate::{
    gpu::{
        columns,
        events::EventQueue,
        health::tracker::ConditionTracker,
        live::LiveGpus,
        nvml::{Library, plan::Tiers},
        store::queue::{QueuedSample, SampleQueue},
    },
    pb,
};

/// State that the sampling threads of this host share.
#[derive(Debug)]
pub(crate) struct SamplingContext {
    pub library: Library,
    pub host_name: String,
    pub interval: Duration,
    pub tiers: Tiers,
    /// Root of the kernel's device files, mostly `/sys`.
    pub sysfs: PathBuf,
    pub live: LiveGpus,
    pub queue: Arc<SampleQueue>,
    pub conditions: Arc<ConditionTracker>,
    pub events: Arc<EventQueue>,
    /// Detections that this process ingested, the source of `inference_fps`.
    pub detections: Detections,
    /// Number of GPUs on this host, without MIG instances.
    pub gpu_count: AtomicU32,
    pub stop: StopSignal,
    /// UUIDs of the GPUs that have a sampler.
    pub sampled_uuids: Mutex<HashSet<String>>,
}

impl SamplingContext {
    /// Hands samples to the subscribers and to the writer, unless the stop signal is set.
    pub(crate) fn publish<'a>(&self, samples: impl Iterator<Item = (&'a Arc<pb::Gpu>, pb::GpuStats)>) {
        self.stop.unless_set(|| {
            for (gpu, mut stats) in samples {
                if self.live.is_excluded(&gpu.uuid) {
                    continue;
                }
                self.live.register(gpu);
                if self.gpu_count.load(Ordering::Relaxed) == 1 {
                    self.detections.fill(&mut stats);
                }
                let (gpu, reading) = (gpu.clone(), self.live.publish(stats));
                self.queue.push(QueuedSample { gpu, reading });
            }
        });
    }

    /// Publishes samples without values for a GPU and its instances, because the driver did not
    /// answer in time.
    pub(crate) fn publish_timed_out(&self, uuid: &str) {
        let gpus = self.live.gpu_and_instances(uuid);
        let absent = gpus.iter().map(|gpu| (gpu, columns::absent_sample(gpu, pb::AbsentReason::TimedOut)));
        self.publish(absent);
    }

    pub(crate) fn sampled_uuids(&self) -> MutexGuard<'_, HashSet<String>> {
        self.sampled_uuids.lock()
    }
}
