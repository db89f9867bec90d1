//! `gpu_reporters`: agents that report GPU samples, with the number of the last batch stored from each.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, string_len, timestamp_with_time_zone_null},
};

use crate::dialect::timestamp_now;

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let reporters = Table::create()
        .table("gpu_reporters")
        .col(string_len("reporter_id", 64).primary_key())
        .col(string_len("host", 255))
        .col(big_integer("last_sequence"))
        .col(big_integer("lost").default(0))
        .col(timestamp_now(manager, "last_seen_at"))
        .col(timestamp_with_time_zone_null("first_seen_at"))
        .take();
    manager.create_table(reporters).await
}
