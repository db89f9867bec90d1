//! `gpu_stats`: what was measured on the GPUs, and `gpus`: which GPUs there are.

use sea_orm_migration::{
    prelude::*,
    schema::{double_null, integer_null, json_binary_null, string_len, string_len_null},
};

use crate::dialect::{brin_index, drop_tables, indexes, number_key, timestamp_now, wide_null};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let stats = Table::create()
            .table("gpu_stats")
            .col(number_key("id"))
            .col(timestamp_now(manager, "recorded_at"))
            .col(string_len_null("gpu_name", 255))
            .col(double_null("gpu_utilization"))
            .col(wide_null("memory_used"))
            .col(wide_null("memory_total"))
            .col(double_null("temperature"))
            .col(double_null("power_usage"))
            .col(double_null("inference_fps"))
            .col(integer_null("fan_speed"))
            .col(integer_null("sm_clock"))
            .col(double_null("memory_bandwidth_utilization"))
            .col(integer_null("pstate"))
            .col(wide_null("throttle_reasons"))
            .col(double_null("power_limit"))
            .col(integer_null("sm_clock_max"))
            .col(integer_null("compute_processes_count"))
            .col(wide_null("pcie_replay_counter"))
            .col(double_null("temp_slowdown_threshold"))
            .col(integer_null("memory_clock"))
            .col(integer_null("memory_clock_max"))
            .col(integer_null("pcie_link_gen"))
            .col(integer_null("pcie_link_width"))
            .col(wide_null("pcie_tx_throughput"))
            .col(wide_null("pcie_rx_throughput"))
            .col(integer_null("encoder_utilization"))
            .col(integer_null("decoder_utilization"))
            .col(wide_null("bar1_used"))
            .col(string_len_null("gpu_uuid", 96))
            .col(integer_null("gpu_index"))
            .col(string_len_null("host", 255))
            .col(string_len_null("pci_bus_id", 32))
            .col(string_len_null("mig_parent_uuid", 96))
            .col(json_binary_null("absent_reasons"))
            .take();
        manager.create_table(stats).await?;
        brin_index(
            manager,
            "gpu_stats",
            "ix_gpu_stats_recorded_at_brin",
            "recorded_at",
        )
        .await?;
        let btrees: &[(&str, &[&str])] = &[
            (
                "idx_gpu_stats_gpu_uuid_recorded_at",
                &["gpu_uuid", "recorded_at"],
            ),
            ("idx_gpu_stats_recorded_at_id", &["recorded_at", "id"]),
        ];
        indexes(manager, "gpu_stats", btrees).await?;
        let gpus = Table::create()
            .table("gpus")
            .col(string_len("uuid", 96).primary_key())
            .col(string_len("host", 255))
            .col(integer_null("gpu_index"))
            .col(string_len_null("name", 255))
            .col(string_len_null("pci_bus_id", 32))
            .col(string_len_null("mig_parent_uuid", 96))
            .col(string_len_null("driver_version", 80))
            .col(timestamp_now(manager, "first_seen_at"))
            .col(timestamp_now(manager, "last_seen_at"))
            .take();
        manager.create_table(gpus).await?;
        indexes(manager, "gpus", &[("idx_gpus_host", &["host"])]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["gpus", "gpu_stats"]).await
    }
}
