//! Power state of a GPU from the kernel, because a call of NVML would wake the GPU.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::gpu::pci_address::PciAddress;

/// Time after which a missing file is opened again, for example on a host without `/sys`.
const OPEN_INTERVAL: Duration = Duration::from_secs(1);

/// The kernel's `runtime_status` file of one GPU. The file stays open, because opening costs ten
/// times as much as reading.
#[derive(Debug)]
pub(crate) struct RuntimeStatus {
    path: PathBuf,
    file: Option<File>,
    last_attempt: Option<Instant>,
}

impl RuntimeStatus {
    /// File of the GPU with the PCI bus id of NVML, below `sysfs`. `None` if the bus id is invalid.
    pub(crate) fn new(sysfs: &Path, pci_bus_id: &str) -> Option<Self> {
        let address = PciAddress::parse(pci_bus_id)?;
        // A GPU is function 0 of its device.
        let device = sysfs.join(format!("bus/pci/devices/{address}.0"));
        Some(Self { path: device.join("power/runtime_status"), file: None, last_attempt: None })
    }

    /// Returns true if the kernel says that the GPU is suspended. False if the file cannot be read.
    pub(crate) fn is_asleep(&mut self, now: Instant) -> bool {
        if self.file.is_none() {
            let is_soon = |last_attempt: Instant| now.saturating_duration_since(last_attempt) < OPEN_INTERVAL;
            if self.last_attempt.is_some_and(is_soon) {
                return false;
            }
            self.last_attempt = Some(now);
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &self.file else {
            return false;
        };
        let mut text = [0; 32];
        let Ok(length) = file.read_at(&mut text, 0) else {
            // The device is gone, and may come back under another file.
            self.file = None;
            return false;
        };
        text[..length].trim_ascii_end() == b"suspended"
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_device_sleeps_if_the_kernel_says_so() {
        let root = tempfile::tempdir().unwrap();
        let power = root.path().join("bus/pci/devices/0000:0a:00.0/power");
        let mut device = RuntimeStatus::new(root.path(), "00000000:0A:00.0").unwrap();
        let start = Instant::now();
        assert!(!device.is_asleep(start));
        fs::create_dir_all(&power).unwrap();
        let status = power.join("runtime_status");
        fs::write(&status, "suspended\n").unwrap();
        assert!(!device.is_asleep(start + OPEN_INTERVAL / 2));
        let later = start + OPEN_INTERVAL;
        assert!(device.is_asleep(later));
        for (text, asleep) in
            [("active\n", false), ("suspended\n", true), ("suspending\n", false), ("unsupported\n", false)]
        {
            fs::write(&status, text).unwrap();
            assert_eq!(device.is_asleep(later), asleep, "{text}");
        }
        fs::write(&status, "suspended\n").unwrap();
        for elsewhere in ["00000000:0B:00.0", "00000001:0A:00.0"] {
            let mut device = RuntimeStatus::new(root.path(), elsewhere).unwrap();
            assert!(!device.is_asleep(later), "{elsewhere}");
        }
        assert!(RuntimeStatus::new(root.path(), "nonsense").is_none());
    }
}
