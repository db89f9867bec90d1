//! Table `gpu_stats`: samples of GPU metrics.

use sea_orm::{QueryOrder, Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "gpu_stats")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub recorded_at: DateTimeUtc,
    pub gpu_name: Option<String>,
    /// GPU utilization, in percent.
    pub gpu_utilization: Option<f64>,
    /// Used memory, in MiB.
    pub memory_used: Option<i64>,
    /// Total memory, in MiB.
    pub memory_total: Option<i64>,
    /// Temperature of the GPU, in degrees Celsius.
    pub temperature: Option<f64>,
    /// Average power, in watts.
    pub power_usage: Option<f64>,
    /// Inference rate, in images per second.
    pub inference_fps: Option<f64>,
    /// Fan speed, in percent.
    pub fan_speed: Option<i32>,
    /// Clock of the streaming multiprocessors, in MHz.
    pub sm_clock: Option<i32>,
    /// Utilization of the memory bandwidth, in percent.
    pub memory_bandwidth_utilization: Option<f64>,
    /// Performance state, 0 (fastest) to 15 (slowest).
    pub pstate: Option<i32>,
    /// Bit mask of throttle reasons, as defined by NVML.
    pub throttle_reasons: Option<i64>,
    /// Power limit, in watts.
    pub power_limit: Option<f64>,
    /// Maximum clock of the streaming multiprocessors, in MHz.
    pub sm_clock_max: Option<i32>,
    pub compute_processes_count: Option<i32>,
    pub pcie_replay_counter: Option<i64>,
    /// Temperature at which the GPU slows down, in degrees Celsius.
    pub temp_slowdown_threshold: Option<f64>,
    /// Memory clock, in MHz.
    pub memory_clock: Option<i32>,
    /// Maximum memory clock, in MHz.
    pub memory_clock_max: Option<i32>,
    pub pcie_link_gen: Option<i32>,
    pub pcie_link_width: Option<i32>,
    /// `PCIe` send rate, in KB/s.
    pub pcie_tx_throughput: Option<i64>,
    /// `PCIe` receive rate, in KB/s.
    pub pcie_rx_throughput: Option<i64>,
    /// Utilization of the video encoder, in percent.
    pub encoder_utilization: Option<i32>,
    /// Utilization of the video decoder, in percent.
    pub decoder_utilization: Option<i32>,
    /// Used BAR1 memory, in MiB.
    pub bar1_used: Option<i64>,
    pub gpu_uuid: Option<String>,
    pub gpu_index: Option<i32>,
    pub host: Option<String>,
    pub pci_bus_id: Option<String>,
    /// Physical GPU of this MIG instance.
    pub mig_parent_uuid: Option<String>,
    /// JSON object of reasons for NULL columns, by column. Only in rows older than `absent_mask`.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub absent_reasons: Option<Json>,
    /// Energy counter, in millijoules.
    pub energy_consumption: Option<i64>,
    /// Instantaneous power, in watts.
    pub power_usage_instant: Option<f64>,
    /// Temperature of the memory, in degrees Celsius.
    pub memory_temperature: Option<f64>,
    /// Number of the counter period; within a period counters only increase.
    pub counter_epoch: Option<i64>,
    /// Reasons for NULL columns: one letter per column, in the order of the table.
    pub absent_mask: Option<String>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { recorded_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

impl Entity {
    /// Selects the newest sample of a GPU; the caller limits the query to one row.
    ///
    /// The range condition on a single UUID, sorted by UUID, requires the index on UUID and time.
    /// With `=`, PostgreSQL might scan the samples of all GPUs backwards, which is slow for a GPU
    /// without recent samples.
    pub fn newest_of(gpu_uuid: &str) -> Select<Self> {
        Self::find()
            .filter(COLUMN.gpu_uuid.gte(gpu_uuid))
            .filter(COLUMN.gpu_uuid.lte(gpu_uuid))
            .order_by_desc(Column::GpuUuid)
            .order_by_desc(Column::RecordedAt)
            .order_by_desc(Column::Id)
    }
}
