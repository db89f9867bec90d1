//! `gpu_stats_minutes`: roll-ups of `gpu_stats`, one row per GPU and minute.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, blob, string_len},
};

use crate::dialect::{indexes, per_backend};

const TABLE: &str = "gpu_stats_minutes";

/// Keeps roll-ups of some KB in the page and uncompressed, because queries read a day of them at once.
const STORAGE: &str = "ALTER TABLE gpu_stats_minutes
    SET (toast_tuple_target = 8160),
    ALTER COLUMN distribution SET STORAGE EXTERNAL";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let minutes = Table::create()
        .table(TABLE)
        .col(string_len("gpu_uuid", 96))
        .col(big_integer("minute"))
        .col(blob("summary"))
        .col(blob("distribution"))
        .primary_key(Index::create().col("gpu_uuid").col("minute"))
        .take();
    manager.create_table(minutes).await?;
    per_backend(manager, &[STORAGE], &[]).await?;
    let btrees: &[(&str, &[&str])] = &[("idx_gpu_stats_minutes_minute", &["minute"])];
    indexes(manager, TABLE, btrees).await
}
