//! `silences`: periods in which matching alerts are suppressed.

use sea_orm_migration::{
    prelude::*,
    schema::{boolean, integer, json_null, string_len, timestamp_with_time_zone, uuid},
};

use crate::dialect::{check, indexes, timestamp_now};

const TABLE: &str = "silences";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let silences = Table::create()
        .table(TABLE)
        .col(uuid("id").primary_key())
        .col(json_null("camera_ids"))
        .col(json_null("rule_ids"))
        .col(json_null("severities"))
        .col(boolean("match_all").default(false))
        .col(timestamp_now(manager, "starts_at"))
        .col(timestamp_with_time_zone("ends_at"))
        .col(string_len("created_by", 100))
        .col(string_len("reason", 1_000))
        .col(integer("version_id").default(1))
        .col(timestamp_now(manager, "created_at"))
        .col(timestamp_now(manager, "updated_at"))
        .check(check("ck_silences_time_order", "ends_at >= starts_at"))
        .take();
    manager.create_table(silences).await?;
    let btrees: &[(&str, &[&str])] =
        &[("idx_silences_created_at_id", &["created_at", "id"]), ("idx_silences_ends_at", &["ends_at"])];
    indexes(manager, TABLE, btrees).await
}
