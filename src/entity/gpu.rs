//! `gpus`: the GPUs that were ever seen.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "gpus")]
pub struct Model {
    /// As NVML gives it: `GPU-…` or `MIG-…`.
    #[sea_orm(primary_key, auto_increment = false)]
    pub uuid: String,
    pub host: String,
    pub gpu_index: Option<i32>,
    pub name: Option<String>,
    pub pci_bus_id: Option<String>,
    /// The GPU that this MIG instance is a part of.
    pub mig_parent_uuid: Option<String>,
    pub driver_version: Option<String>,
    pub first_seen_at: DateTimeUtc,
    pub last_seen_at: DateTimeUtc,
    /// As its host last reported it.
    pub state: Option<GpuState>,
    /// NULL where it is not known.
    pub memory_pressure: Option<MemoryPressure>,
    /// When its host last reported how it is, be it well or not.
    pub reported_at: Option<DateTimeUtc>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        let now = super::now();
        Self {
            first_seen_at: Set(now),
            last_seen_at: Set(now),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}

/// How a GPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "String(StringLen::None)",
    rename_all = "snake_case"
)]
pub enum GpuState {
    Ok,
    Unresponsive,
    Lost,
    Asleep,
    Unknown,
}

/// How full the memory of a GPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "String(StringLen::None)",
    rename_all = "snake_case"
)]
pub enum MemoryPressure {
    Normal,
    Warning,
    Critical,
}
