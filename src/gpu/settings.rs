//! Settings of GPU telemetry, and the limits that several of its files share.

use std::{path::PathBuf, time::Duration};

use super::{nvml::plan::Tiers, sampling::inference::Detections};

/// Upper bound of samples in memory that wait to be stored or reported.
pub const MAX_QUEUED_SAMPLES: usize = 20_000;

/// Time for which the start of the server waits for the list of GPUs. GPUs that are found later are
/// sampled all the same.
pub(super) const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(3);

/// Time that storing the last rows may take at shutdown.
pub(super) const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// GPU source and sampling schedule of this process.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Path of the NVML library. `None`: the system's loader looks for `libnvidia-ml.so.1`.
    pub library: Option<PathBuf>,
    /// Time between two samples of a GPU. Values below 1 ms count as 1 ms.
    pub interval: Duration,
    /// Name of this host, stored with every sample.
    pub host: String,
    /// Periods of the driver calls, and the time budget for all calls.
    pub tiers: Tiers,
    /// Path of the kernel log, which holds XIDs. `None`: XIDs come from NVML only.
    pub kernel_log: Option<PathBuf>,
    /// Root of the kernel's device files, mostly `/sys`.
    pub sysfs: PathBuf,
    /// Detections that this process ingests, the source of `inference_fps`.
    pub detections: Detections,
}
