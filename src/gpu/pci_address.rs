//! Address of a device on the PCI bus.

/// Address of a device on the PCI bus, without the function, which is 0 for every GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gpu) struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
}

impl PciAddress {
    /// Parses the formats of NVML (`00000000:01:00.0`) and of the kernel log (`0000:01:00`).
    pub(in crate::gpu) fn parse(text: &str) -> Option<Self> {
        let text = text.split('.').next()?;
        let mut parts = text.split(':');
        let (domain, bus, device) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        Some(Self {
            domain: u32::from_str_radix(domain, 16).ok()?,
            bus: u8::from_str_radix(bus, 16).ok()?,
            device: u8::from_str_radix(device, 16).ok()?,
        })
    }
}

impl std::fmt::Display for PciAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}", self.domain, self.bus, self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_the_same_however_they_are_written() {
        let nvml = PciAddress::parse("00000000:0A:00.0").unwrap();
        assert_eq!(PciAddress::parse("0000:0a:00"), Some(nvml));
        assert_eq!(nvml.to_string(), "0000:0a:00");
        for text in ["", "0000:01", "0000:01:00:00", "0000:xx:00", "0000:100:00"] {
            assert_eq!(PciAddress::parse(text), None, "{text}");
        }
    }
}
