//! Whether a GPU sleeps, as the kernel says: NVML would have to wake it to tell.

use std::{fs, path::PathBuf};

use super::events::PciAddress;

/// The kernel's account of the devices, mostly `/sys`.
#[derive(Debug)]
pub(super) struct Sysfs(pub PathBuf);

impl Sysfs {
    /// Whether the GPU at this address, as NVML writes it, is suspended. Not if the kernel does not
    /// say so.
    pub(super) fn is_asleep(&self, pci_bus_id: &str) -> bool {
        let Some(address) = PciAddress::parse(pci_bus_id) else {
            return false;
        };
        // GPUs are the first function of their device.
        let device = self.0.join(format!("bus/pci/devices/{address}.0"));
        fs::read_to_string(device.join("power/runtime_status"))
            .is_ok_and(|status| status.trim_end() == "suspended")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_sleeps_if_the_kernel_says_so() {
        let root = tempfile::tempdir().unwrap();
        let power = root.path().join("bus/pci/devices/0000:0a:00.0/power");
        fs::create_dir_all(&power).unwrap();
        let sysfs = Sysfs(root.path().into());
        let status = power.join("runtime_status");
        for (text, asleep) in [
            ("suspended\n", true),
            ("active\n", false),
            ("suspending\n", false),
            ("unsupported\n", false),
        ] {
            fs::write(&status, text).unwrap();
            assert_eq!(sysfs.is_asleep("00000000:0A:00.0"), asleep, "{text}");
        }
        fs::write(&status, "suspended\n").unwrap();
        for elsewhere in ["00000000:0B:00.0", "00000001:0A:00.0", "nonsense", ""] {
            assert!(!sysfs.is_asleep(elsewhere), "{elsewhere}");
        }
    }
}
