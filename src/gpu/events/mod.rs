//! What happens to GPUs: facts that are told to subscribers and kept for good.
//!
//! They come from NVML (`listener`), from the kernel log (`kernel_log`) and from how the GPUs are
//! found to be (`condition`), wait in a bounded `queue`, and are stored by `store` in the
//! transaction that announces them.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use prost::Message;

use super::live::Condition;
use crate::{
    entity::{
        self,
        gpu_event::{self, GpuEventKind, GpuEventSource},
    },
    feed::{Record, Topic},
    pb::{self, watch_response::Update},
    rpc::{enums::proto_enum, time},
};

mod counts;
pub(super) mod list;
mod pairing;
mod queue;

pub use self::counts::Counts;
pub(super) use self::queue::Queue;

/// Something that happened, as long as it is not stored.
#[derive(Debug, Clone)]
pub(super) struct Happened {
    pub at: DateTime<Utc>,
    /// Its UUID is empty as long as that is not known.
    pub gpu: Option<Arc<pb::Gpu>>,
    /// Where the GPU is that nobody knows.
    pub address: Option<PciAddress>,
    pub kind: GpuEventKind,
    pub code: Option<i64>,
    pub detail: Option<String>,
    pub source: GpuEventSource,
    pub occurrences: i64,
    /// How GPUs and MIG instances are since then, by UUID.
    pub after: Vec<(String, Condition)>,
}

/// A place on the PCI bus. Its function, which is 0 for every GPU, is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
}

impl Happened {
    /// Something happens to this GPU, now.
    pub(super) fn to(
        gpu: &Arc<pb::Gpu>,
        kind: GpuEventKind,
        source: GpuEventSource,
        detail: Option<String>,
    ) -> Self {
        Self {
            at: entity::now(),
            gpu: Some(gpu.clone()),
            address: None,
            kind,
            code: None,
            detail,
            source,
            occurrences: 1,
            after: Vec::new(),
        }
    }

    /// The GPU, by its UUID or at least by its place.
    fn whom(&self) -> Option<String> {
        let index = || Some(self.gpu.as_ref()?.gpu_index?.to_string());
        let place = || self.address.map(|address| address.to_string());
        self.uuid()
            .map(str::to_string)
            .or_else(place)
            .or_else(index)
    }

    fn uuid(&self) -> Option<&str> {
        let uuid = self.gpu.as_ref()?.uuid.as_str();
        (!uuid.is_empty()).then_some(uuid)
    }

    /// What is kept of it, on this host. It has no id yet.
    pub(super) fn fact(&self, host: &str) -> gpu_event::Model {
        let gpu = self.gpu.as_deref();
        let address = || self.address.map(|address| address.to_string());
        gpu_event::Model {
            id: 0,
            occurred_at: self.at,
            host: host.into(),
            gpu_uuid: self.uuid().map(Into::into),
            gpu_index: gpu.and_then(|gpu| gpu.gpu_index),
            gpu_name: gpu.and_then(|gpu| gpu.name.clone()),
            pci_bus_id: gpu.and_then(|gpu| gpu.pci_bus_id.clone()).or_else(address),
            mig_parent_uuid: gpu.and_then(|gpu| gpu.mig_parent_uuid.clone()),
            kind: self.kind,
            code: self.code,
            detail: self.detail.clone(),
            source: self.source,
            occurrences: self.occurrences,
        }
    }
}

impl PciAddress {
    /// Reads `00000000:01:00.0`, as NVML has it, and `0000:01:00`, as the kernel log does.
    pub(super) fn parse(text: &str) -> Option<Self> {
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
        write!(
            f,
            "{:04x}:{:02x}:{:02x}",
            self.domain, self.bus, self.device
        )
    }
}

/// What subscribers are sent of a stored event.
pub(super) fn announcement(event: pb::GpuEvent) -> Record {
    let key = event.id.to_string();
    let message = pb::WatchResponse {
        update: Some(Update::GpuEvent(event)),
        ..Default::default()
    };
    Record {
        topic: Topic::GpuEvents,
        key,
        message: message.encode_to_vec(),
    }
}

impl From<gpu_event::Model> for pb::GpuEvent {
    fn from(row: gpu_event::Model) -> Self {
        Self {
            id: row.id,
            occurred_at: Some(time::to_proto(row.occurred_at)),
            host: row.host,
            gpu_uuid: row.gpu_uuid,
            gpu_index: row.gpu_index,
            gpu_name: row.gpu_name,
            pci_bus_id: row.pci_bus_id,
            mig_parent_uuid: row.mig_parent_uuid,
            kind: pb::GpuEventKind::from(row.kind).into(),
            code: row.code,
            detail: row.detail,
            source: pb::GpuEventSource::from(row.source).into(),
            occurrences: row.occurrences,
        }
    }
}

proto_enum!(
    GpuEventKind,
    pb::GpuEventKind {
        Xid,
        Lost,
        Back,
        Unresponsive,
        Responsive,
        DriverChanged,
        ResetRequired,
        MemoryPressureChanged,
        MigChanged,
        EccDoubleBit,
        EccSingleBit,
        PowerSourceChanged,
    }
);
proto_enum!(
    GpuEventSource,
    pb::GpuEventSource {
        NvmlEvent,
        KernelLog,
        Handle,
        Watchdog,
        Sampler
    }
);

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
