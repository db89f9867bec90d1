//! `gpu_stats`: what was measured on a GPU at one time.

use sea_orm::{QueryOrder, Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "gpu_stats")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub recorded_at: DateTimeUtc,
    pub gpu_name: Option<String>,
    /// Percent.
    pub gpu_utilization: Option<f64>,
    /// MiB.
    pub memory_used: Option<i64>,
    /// MiB.
    pub memory_total: Option<i64>,
    /// Degrees Celsius.
    pub temperature: Option<f64>,
    /// Watts.
    pub power_usage: Option<f64>,
    /// Pictures a second.
    pub inference_fps: Option<f64>,
    /// Percent.
    pub fan_speed: Option<i32>,
    /// MHz.
    pub sm_clock: Option<i32>,
    /// Percent.
    pub memory_bandwidth_utilization: Option<f64>,
    /// 0 is the fastest, 15 the slowest.
    pub pstate: Option<i32>,
    /// The bit mask that NVML gives.
    pub throttle_reasons: Option<i64>,
    /// Watts.
    pub power_limit: Option<f64>,
    /// MHz.
    pub sm_clock_max: Option<i32>,
    pub compute_processes_count: Option<i32>,
    pub pcie_replay_counter: Option<i64>,
    /// Degrees Celsius.
    pub temp_slowdown_threshold: Option<f64>,
    /// MHz.
    pub memory_clock: Option<i32>,
    /// MHz.
    pub memory_clock_max: Option<i32>,
    pub pcie_link_gen: Option<i32>,
    pub pcie_link_width: Option<i32>,
    /// KB/s.
    pub pcie_tx_throughput: Option<i64>,
    /// KB/s.
    pub pcie_rx_throughput: Option<i64>,
    /// Percent.
    pub encoder_utilization: Option<i32>,
    /// Percent.
    pub decoder_utilization: Option<i32>,
    /// MiB.
    pub bar1_used: Option<i64>,
    pub gpu_uuid: Option<String>,
    pub gpu_index: Option<i32>,
    pub host: Option<String>,
    pub pci_bus_id: Option<String>,
    /// The GPU that this MIG instance is a part of.
    pub mig_parent_uuid: Option<String>,
    /// Why a column is NULL: an object of column and reason. In rows from before there was `absent_mask`.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub absent_reasons: Option<Json>,
    /// Millijoules since the counter began.
    pub energy_consumption: Option<i64>,
    /// Watts.
    pub power_usage_instant: Option<f64>,
    /// Degrees Celsius.
    pub memory_temperature: Option<f64>,
    /// Tells the stretches apart in which counters only grow.
    pub counter_epoch: Option<i64>,
    /// Why a column is NULL: a letter for each, in the order of the table.
    pub absent_mask: Option<String>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self {
            recorded_at: Set(super::now()),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}

impl Entity {
    /// The newest sample of a GPU, to be asked for as one row.
    ///
    /// As a range of one UUID in the order of UUIDs it can only be answered by the index of both. Asked
    /// for by `=`, PostgreSQL may rather read the samples of all GPUs backwards until it meets one of
    /// this GPU, and goes through all of them if the GPU is long gone.
    pub fn newest_of(gpu_uuid: &str) -> Select<Self> {
        Self::find()
            .filter(COLUMN.gpu_uuid.gte(gpu_uuid))
            .filter(COLUMN.gpu_uuid.lte(gpu_uuid))
            .order_by_desc(Column::GpuUuid)
            .order_by_desc(Column::RecordedAt)
            .order_by_desc(Column::Id)
    }
}
