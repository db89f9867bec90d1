//! `notification_channels`: receivers of alerts; `deliveries`: outbox of notifications.

use ForeignKeyAction::{Cascade, SetNull};
use sea_orm_migration::{
    prelude::*,
    schema::{
        blob_null, boolean, integer, integer_null, json_binary, json_binary_null, string_len, string_len_null, text,
        text_null, timestamp_with_time_zone_null, uuid, uuid_null,
    },
};

use crate::dialect::{check, drop_tables, execute, indexes, references, timestamp_now, unique};

/// Partial index for the query of due deliveries. It stays small because most rows are delivered.
const DUE: &str = "CREATE INDEX idx_deliveries_due ON deliveries \
    (channel_id, next_attempt_at) WHERE status = 'queued'";

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_channels(manager).await?;
        create_deliveries(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["deliveries", "notification_channels"]).await
    }
}

async fn create_channels(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let channels = Table::create()
        .table("notification_channels")
        .col(uuid("id").primary_key())
        .col(string_len("name", 100))
        .col(text_null("description"))
        .col(boolean("enabled").default(true))
        .col(string_len("kind", 16))
        .col(json_binary("config"))
        .col(blob_null("secrets"))
        .col(json_binary_null("quiet_times"))
        .col(string_len_null("quiet_except", 16))
        .col(text_null("disabled_reason"))
        .col(timestamp_with_time_zone_null("throttled_until"))
        .col(timestamp_now(manager, "created_at"))
        .col(timestamp_now(manager, "updated_at"))
        .col(integer("version_id").default(1))
        .index(&mut unique("uq_notification_channels_name", &["name"]))
        .check(check("ck_notification_channels_kind", "kind IN ('webhook', 'email', 'stream')"))
        .check(check("ck_notification_channels_quiet_except", "quiet_except IN ('low', 'medium', 'high', 'critical')"))
        .take();
    manager.create_table(channels).await?;
    let newest: &[(&str, &[&str])] = &[("idx_notification_channels_created_at_id", &["created_at", "id"])];
    indexes(manager, "notification_channels", newest).await
}

async fn create_deliveries(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let deliveries = Table::create()
        .table("deliveries")
        .col(uuid("id").primary_key())
        .col(uuid("alert_id"))
        .col(uuid_null("channel_id"))
        .col(string_len("channel_name", 100))
        .col(integer("escalation_step").default(0))
        .col(string_len("severity", 16))
        .col(text("status").default("queued"))
        .col(integer("attempts").default(0))
        .col(integer("failures").default(0))
        .col(timestamp_with_time_zone_null("next_attempt_at"))
        .col(timestamp_with_time_zone_null("last_attempt_at"))
        .col(uuid_null("lease_id"))
        .col(text_null("last_error"))
        .col(integer_null("last_status_code"))
        .col(timestamp_now(manager, "created_at"))
        .col(timestamp_now(manager, "updated_at"))
        .col(timestamp_with_time_zone_null("delivered_at"))
        .index(&mut unique(
            "uq_deliveries_alert_id_channel_id_escalation_step",
            &["alert_id", "channel_id", "escalation_step"],
        ))
        .foreign_key(&mut references("deliveries", "alert_id", "alerts", Cascade))
        .foreign_key(&mut references("deliveries", "channel_id", "notification_channels", SetNull))
        .check(check("ck_deliveries_status", "status IN ('queued', 'delivered', 'dead', 'cancelled')"))
        .check(check("ck_deliveries_severity", "severity IN ('low', 'medium', 'high', 'critical')"))
        .check(check("ck_deliveries_queued_has_next_attempt", "status <> 'queued' OR next_attempt_at IS NOT NULL"))
        .take();
    manager.create_table(deliveries).await?;
    execute(manager, &[DUE]).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_deliveries_channel_id", &["channel_id"]),
        ("idx_deliveries_created_at_id", &["created_at", "id"]),
        ("idx_deliveries_status_created_at_id", &["status", "created_at", "id"]),
    ];
    indexes(manager, "deliveries", btrees).await
}
