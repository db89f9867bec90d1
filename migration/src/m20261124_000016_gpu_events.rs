//! `gpu_events`: what happened to the GPUs, and how each of them is, in `gpus`.

use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer, integer_null, string_len, string_len_null, text_null,
        timestamp_with_time_zone, timestamp_with_time_zone_null,
    },
};

use crate::dialect::{check, drop_tables, indexes, number_key, wide_null};

/// The columns of `gpus`: the last one first, as they are dropped.
const CONDITION: [&str; 3] = ["reported_at", "memory_pressure", "state"];

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let events = Table::create()
            .table("gpu_events")
            .col(number_key("id"))
            .col(timestamp_with_time_zone("occurred_at"))
            .col(string_len("host", 255))
            .col(string_len_null("gpu_uuid", 96))
            .col(integer_null("gpu_index"))
            .col(string_len_null("gpu_name", 255))
            .col(string_len_null("pci_bus_id", 32))
            .col(string_len_null("mig_parent_uuid", 96))
            .col(string_len("kind", 32))
            .col(wide_null("code"))
            .col(text_null("detail"))
            .col(string_len("source", 32))
            .col(big_integer("occurrences").default(1))
            .check(check(
                "ck_gpu_events_kind",
                "kind IN ('xid', 'lost', 'back', 'unresponsive', 'responsive', 'driver_changed', \
                'reset_required', 'memory_pressure_changed', 'mig_changed', 'ecc_double_bit', \
                'ecc_single_bit', 'power_source_changed')",
            ))
            .check(check(
                "ck_gpu_events_source",
                "source IN ('nvml_event', 'kernel_log', 'handle', 'watchdog', 'sampler')",
            ))
            .check(check(
                "ck_gpu_events_occurrences_positive",
                "occurrences >= 1",
            ))
            .take();
        manager.create_table(events).await?;
        let btrees: &[(&str, &[&str])] = &[
            ("idx_gpu_events_occurred_at_id", &["occurred_at", "id"]),
            (
                "idx_gpu_events_gpu_uuid_occurred_at_id",
                &["gpu_uuid", "occurred_at", "id"],
            ),
            (
                "idx_gpu_events_kind_occurred_at_id",
                &["kind", "occurred_at", "id"],
            ),
        ];
        indexes(manager, "gpu_events", btrees).await?;

        let state = string_len_null("state", 16)
            .check(check(
                "ck_gpus_state",
                "state IN ('ok', 'unresponsive', 'lost', 'asleep', 'unknown')",
            ))
            .take();
        let pressure = string_len_null("memory_pressure", 16)
            .check(check(
                "ck_gpus_memory_pressure",
                "memory_pressure IN ('normal', 'warning', 'critical')",
            ))
            .take();
        // One by one: SQLite adds no two columns at once.
        for column in [
            state,
            pressure,
            timestamp_with_time_zone_null("reported_at"),
        ] {
            let gpus = Table::alter().table("gpus").add_column(column).take();
            manager.alter_table(gpus).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in CONDITION {
            let gpus = Table::alter().table("gpus").drop_column(column).take();
            manager.alter_table(gpus).await?;
        }
        drop_tables(manager, &["gpu_events"]).await
    }
}
