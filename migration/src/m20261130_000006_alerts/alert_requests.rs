//! `alert_requests`: request ids of alerts raised by hand, which make that call idempotent.

use ForeignKeyAction::Cascade;
use sea_orm_migration::{
    prelude::*,
    schema::{blob, boolean, string_len, uuid},
};

use crate::dialect::{indexes, references, timestamp_now};

const TABLE: &str = "alert_requests";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let requests = Table::create()
        .table(TABLE)
        .col(string_len("request_id", 128).primary_key())
        .col(blob("fingerprint"))
        .col(uuid("alert_id"))
        .col(boolean("created"))
        .col(timestamp_now(manager, "created_at"))
        .foreign_key(&mut references(TABLE, "alert_id", "alerts", Cascade))
        .take();
    manager.create_table(requests).await?;
    // Without this index, every deleted alert would scan the table for the cascade.
    let btrees: &[(&str, &[&str])] = &[("idx_alert_requests_alert_id", &["alert_id"])];
    indexes(manager, TABLE, btrees).await
}
