//! `gpu_stats`: samples of the GPUs, one row per GPU and time.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer_null, double_null, integer_null, json_binary_null, string_len_null},
};

use crate::dialect::{brin_index, indexes, number_key, timestamp_now};

const TABLE: &str = "gpu_stats";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let stats = Table::create()
        .table(TABLE)
        .col(number_key("id"))
        .col(timestamp_now(manager, "recorded_at"))
        .col(string_len_null("gpu_name", 255))
        .col(double_null("gpu_utilization"))
        .col(big_integer_null("memory_used"))
        .col(big_integer_null("memory_total"))
        .col(double_null("temperature"))
        .col(double_null("power_usage"))
        .col(double_null("inference_fps"))
        .col(integer_null("fan_speed"))
        .col(integer_null("sm_clock"))
        .col(double_null("memory_bandwidth_utilization"))
        .col(integer_null("pstate"))
        .col(big_integer_null("throttle_reasons"))
        .col(double_null("power_limit"))
        .col(integer_null("sm_clock_max"))
        .col(integer_null("compute_processes_count"))
        .col(big_integer_null("pcie_replay_counter"))
        .col(double_null("temp_slowdown_threshold"))
        .col(integer_null("memory_clock"))
        .col(integer_null("memory_clock_max"))
        .col(integer_null("pcie_link_gen"))
        .col(integer_null("pcie_link_width"))
        .col(big_integer_null("pcie_tx_throughput"))
        .col(big_integer_null("pcie_rx_throughput"))
        .col(integer_null("encoder_utilization"))
        .col(integer_null("decoder_utilization"))
        .col(big_integer_null("bar1_used"))
        .col(string_len_null("gpu_uuid", 96))
        .col(integer_null("gpu_index"))
        .col(string_len_null("host", 255))
        .col(string_len_null("pci_bus_id", 32))
        .col(string_len_null("mig_parent_uuid", 96))
        .col(json_binary_null("absent_reasons"))
        .col(big_integer_null("energy_consumption"))
        .col(double_null("power_usage_instant"))
        .col(double_null("memory_temperature"))
        .col(big_integer_null("counter_epoch"))
        .col(string_len_null("absent_mask", 64))
        .take();
    manager.create_table(stats).await?;
    brin_index(manager, TABLE, "ix_gpu_stats_recorded_at_brin", "recorded_at").await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_gpu_stats_gpu_uuid_recorded_at", &["gpu_uuid", "recorded_at"]),
        ("idx_gpu_stats_recorded_at_id", &["recorded_at", "id"]),
    ];
    indexes(manager, TABLE, btrees).await
}
