//! An event that is not stored yet, and its conversions to a row, a message and a feed record.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::{
    entity::{
        self,
        gpu_event::{self, GpuEventKind, GpuEventSource},
    },
    feed::Record,
    gpu::{condition::Condition, pci_address::PciAddress},
    pb::{self, watch_response::Update},
    rpc::{enums::proto_enum, time},
    topics,
};

/// Event that is not stored yet.
#[derive(Debug, Clone)]
pub(in crate::gpu) struct PendingEvent {
    pub occurred_at: DateTime<Utc>,
    /// GPU of the event, if known. The UUID is empty while unknown.
    pub gpu: Option<Arc<pb::Gpu>>,
    /// PCI address of the GPU, for an event of a GPU that no sampler has.
    pub address: Option<PciAddress>,
    pub kind: GpuEventKind,
    pub code: Option<i64>,
    pub detail: Option<String>,
    pub source: GpuEventSource,
    pub occurrences: i64,
    /// Conditions of GPUs and MIG instances after the event, by UUID.
    pub conditions: Vec<(String, Condition)>,
}

impl PendingEvent {
    /// Event of the GPU at the current time.
    pub(in crate::gpu) fn new(
        gpu: &Arc<pb::Gpu>,
        kind: GpuEventKind,
        source: GpuEventSource,
        detail: Option<String>,
    ) -> Self {
        Self {
            occurred_at: entity::now(),
            gpu: Some(gpu.clone()),
            address: None,
            kind,
            code: None,
            detail,
            source,
            occurrences: 1,
            conditions: Vec::new(),
        }
    }

    /// Identity of the GPU for comparisons: the UUID, the PCI address or the index, whichever is
    /// known first.
    pub(super) fn subject(&self) -> Option<String> {
        let index = || Some(self.gpu.as_ref()?.gpu_index?.to_string());
        let address = || self.address.map(|address| address.to_string());
        self.uuid().map(str::to_string).or_else(address).or_else(index)
    }

    fn uuid(&self) -> Option<&str> {
        let uuid = self.gpu.as_ref()?.uuid.as_str();
        (!uuid.is_empty()).then_some(uuid)
    }

    /// Row of the event for this host. The id is 0 until the database assigns one.
    pub(in crate::gpu) fn to_model(&self, host: &str) -> gpu_event::Model {
        let gpu = self.gpu.as_deref();
        let address = || self.address.map(|address| address.to_string());
        gpu_event::Model {
            id: 0,
            occurred_at: self.occurred_at,
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

/// Feed record of a stored event.
pub(in crate::gpu) fn to_record(event: pb::GpuEvent) -> Record {
    let key = event.id.to_string();
    topics::record(key, Update::GpuEvent(event))
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
proto_enum!(GpuEventSource, pb::GpuEventSource { NvmlEvent, KernelLog, Handle, Watchdog, Sampler });
