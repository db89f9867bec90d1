//! Table `gpus`: all GPUs that were ever reported.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "gpus")]
pub struct Model {
    /// NVML identifier: `GPU-…` or `MIG-…`.
    #[sea_orm(primary_key, auto_increment = false)]
    pub uuid: String,
    pub host: String,
    pub gpu_index: Option<i32>,
    pub name: Option<String>,
    pub pci_bus_id: Option<String>,
    /// Physical GPU of this MIG instance.
    pub mig_parent_uuid: Option<String>,
    pub driver_version: Option<String>,
    pub first_seen_at: DateTimeUtc,
    pub last_seen_at: DateTimeUtc,
    /// State from the last report of the host.
    pub state: Option<GpuState>,
    /// Memory pressure; NULL if unknown.
    pub memory_pressure: Option<MemoryPressure>,
    /// Time of the host's last report of the state.
    pub reported_at: Option<DateTimeUtc>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        let now = super::now();
        Self { first_seen_at: Set(now), last_seen_at: Set(now), ..<Self as ActiveModelTrait>::default() }
    }
}

/// State of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum GpuState {
    Ok,
    Unresponsive,
    Lost,
    Asleep,
    Unknown,
}

/// Memory pressure of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum MemoryPressure {
    Normal,
    Warning,
    Critical,
}
