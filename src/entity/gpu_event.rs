//! Table `gpu_events`: events of GPUs, such as XID errors and lost devices.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "gpu_events")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub occurred_at: DateTimeUtc,
    pub host: String,
    /// UUID of the GPU; NULL for a GPU that was never sampled.
    pub gpu_uuid: Option<String>,
    pub gpu_index: Option<i32>,
    pub gpu_name: Option<String>,
    pub pci_bus_id: Option<String>,
    pub mig_parent_uuid: Option<String>,
    pub kind: GpuEventKind,
    /// Number of the XID error.
    pub code: Option<i64>,
    #[sea_orm(column_type = "Text", nullable)]
    pub detail: Option<String>,
    pub source: GpuEventSource,
    /// Number of events represented by the row.
    pub occurrences: i64,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { occurrences: Set(1), ..<Self as ActiveModelTrait>::default() }
    }
}

/// Kind of a GPU event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum GpuEventKind {
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

/// Source of a GPU event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum GpuEventSource {
    NvmlEvent,
    KernelLog,
    Handle,
    Watchdog,
    Sampler,
}
