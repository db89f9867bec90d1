//! Whether a GPU sleeps, as the kernel says: NVML would have to wake it to tell.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::gpu::events::PciAddress;

/// How soon to look again for what the kernel does not tell, as on a host that mounts no `/sys`.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The kernel's account of one GPU. It is kept open: to find a file costs ten times as much as to read
/// it.
#[derive(Debug)]
pub(crate) struct RuntimeStatus {
    path: PathBuf,
    file: Option<File>,
    looked: Option<Instant>,
}

impl RuntimeStatus {
    /// That of the GPU at this address, as NVML writes it, below `sysfs`, mostly `/sys`.
    pub(crate) fn of(sysfs: &Path, pci_bus_id: &str) -> Option<Self> {
        let address = PciAddress::parse(pci_bus_id)?;
        // GPUs are the first function of their device.
        let device = sysfs.join(format!("bus/pci/devices/{address}.0"));
        Some(Self {
            path: device.join("power/runtime_status"),
            file: None,
            looked: None,
        })
    }

    /// Whether the GPU is suspended. Not if the kernel does not say so.
    pub(crate) fn is_asleep(&mut self, now: Instant) -> bool {
        if self.file.is_none() {
            let is_soon = |looked: Instant| now.saturating_duration_since(looked) < LOOK_EVERY;
            if self.looked.is_some_and(is_soon) {
                return false;
            }
            self.looked = Some(now);
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &self.file else {
            return false;
        };
        let mut text = [0; 32];
        let Ok(length) = file.read_at(&mut text, 0) else {
            // The device is gone, and may come back as another one.
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
        let mut device = RuntimeStatus::of(root.path(), "00000000:0A:00.0").unwrap();
        let start = Instant::now();
        assert!(!device.is_asleep(start));
        fs::create_dir_all(&power).unwrap();
        let status = power.join("runtime_status");
        fs::write(&status, "suspended\n").unwrap();
        assert!(!device.is_asleep(start + LOOK_EVERY / 2));
        let later = start + LOOK_EVERY;
        assert!(device.is_asleep(later));
        for (text, asleep) in [
            ("active\n", false),
            ("suspended\n", true),
            ("suspending\n", false),
            ("unsupported\n", false),
        ] {
            fs::write(&status, text).unwrap();
            assert_eq!(device.is_asleep(later), asleep, "{text}");
        }
        fs::write(&status, "suspended\n").unwrap();
        for elsewhere in ["00000000:0B:00.0", "00000001:0A:00.0"] {
            let mut device = RuntimeStatus::of(root.path(), elsewhere).unwrap();
            assert!(!device.is_asleep(later), "{elsewhere}");
        }
        assert!(RuntimeStatus::of(root.path(), "nonsense").is_none());
    }
}
