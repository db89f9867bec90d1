//! `gpus`: every GPU that was ever sampled, with its last known state.

use sea_orm_migration::{
    prelude::*,
    schema::{integer_null, string_len, string_len_null, timestamp_with_time_zone_null},
};

use crate::dialect::{check, indexes, timestamp_now};

const TABLE: &str = "gpus";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let gpus = Table::create()
        .table(TABLE)
        .col(string_len("uuid", 96).primary_key())
        .col(string_len("host", 255))
        .col(integer_null("gpu_index"))
        .col(string_len_null("name", 255))
        .col(string_len_null("pci_bus_id", 32))
        .col(string_len_null("mig_parent_uuid", 96))
        .col(string_len_null("driver_version", 80))
        .col(timestamp_now(manager, "first_seen_at"))
        .col(timestamp_now(manager, "last_seen_at"))
        .col(string_len_null("state", 16))
        .col(string_len_null("memory_pressure", 16))
        .col(timestamp_with_time_zone_null("reported_at"))
        .check(check("ck_gpus_state", "state IN ('ok', 'unresponsive', 'lost', 'asleep', 'unknown')"))
        .check(check("ck_gpus_memory_pressure", "memory_pressure IN ('normal', 'warning', 'critical')"))
        .take();
    manager.create_table(gpus).await?;
    indexes(manager, TABLE, &[("idx_gpus_host", &["host"])]).await
}
