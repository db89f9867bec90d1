//! `gpu_events`: events of the GPUs, such as XID errors, losses and returns.

use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer, big_integer_null, integer_null, string_len, string_len_null, text_null, timestamp_with_time_zone,
    },
};

use crate::dialect::{check, indexes, number_key};

const TABLE: &str = "gpu_events";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let events = Table::create()
        .table(TABLE)
        .col(number_key("id"))
        .col(timestamp_with_time_zone("occurred_at"))
        .col(string_len("host", 255))
        .col(string_len_null("gpu_uuid", 96))
        .col(integer_null("gpu_index"))
        .col(string_len_null("gpu_name", 255))
        .col(string_len_null("pci_bus_id", 32))
        .col(string_len_null("mig_parent_uuid", 96))
        .col(string_len("kind", 32))
        .col(big_integer_null("code"))
        .col(text_null("detail"))
        .col(string_len("source", 32))
        .col(big_integer("occurrences").default(1))
        .check(check(
            "ck_gpu_events_kind",
            "kind IN ('xid', 'lost', 'back', 'unresponsive', 'responsive', 'driver_changed', \
            'reset_required', 'memory_pressure_changed', 'mig_changed', 'ecc_double_bit', \
            'ecc_single_bit', 'power_source_changed')",
        ))
        .check(check("ck_gpu_events_source", "source IN ('nvml_event', 'kernel_log', 'handle', 'watchdog', 'sampler')"))
        .check(check("ck_gpu_events_occurrences_positive", "occurrences >= 1"))
        .take();
    manager.create_table(events).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_gpu_events_occurred_at_id", &["occurred_at", "id"]),
        ("idx_gpu_events_gpu_uuid_occurred_at_id", &["gpu_uuid", "occurred_at", "id"]),
        ("idx_gpu_events_kind_occurred_at_id", &["kind", "occurred_at", "id"]),
    ];
    indexes(manager, TABLE, btrees).await
}
