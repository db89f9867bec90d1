//! The life of `alerts`: who moved them when in `alert_transitions`, their repeats, and those that
//! are raised by hand.

use ForeignKeyAction::Cascade;
use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer, big_integer_null, blob, boolean, integer, string_len, string_len_null,
        text_null, timestamp_with_time_zone_null, uuid,
    },
};

use crate::dialect::{
    Vocabulary, drop_tables, indexes, number_key, references, timestamp_now, unique,
};

/// The type itself is of the migration of the alerts.
const STATUS: Vocabulary = Vocabulary {
    name: "alert_status",
    labels: &["pending", "delivered", "acknowledged", "dismissed"],
};

/// The last one first, as they are dropped.
const COLUMNS: [&str; 6] = [
    "dismissed_by",
    "dismissed_at",
    "acknowledged_by",
    "acknowledged_at",
    "last_suppressed_at",
    "suppressed_count",
];

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // SQLite adds one column at a time.
        for column in [
            big_integer("suppressed_count").default(0).take(),
            timestamp_with_time_zone_null("last_suppressed_at"),
            timestamp_with_time_zone_null("acknowledged_at"),
            string_len_null("acknowledged_by", 100),
            timestamp_with_time_zone_null("dismissed_at"),
            string_len_null("dismissed_by", 100),
        ] {
            let alerts = Table::alter().table("alerts").add_column(column).take();
            manager.alter_table(alerts).await?;
        }
        create_alert_transitions(manager).await?;
        create_manual_alert_cooldowns(manager).await?;
        create_alert_requests(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let tables = [
            "alert_requests",
            "manual_alert_cooldowns",
            "alert_transitions",
        ];
        drop_tables(manager, &tables).await?;
        for column in COLUMNS {
            let alerts = Table::alter().table("alerts").drop_column(column).take();
            manager.alter_table(alerts).await?;
        }
        Ok(())
    }
}

async fn create_alert_transitions(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let transitions = Table::create()
        .table("alert_transitions")
        .col(number_key("id"))
        .col(uuid("alert_id"))
        .col(
            STATUS
                .column(manager, "alert_transitions", "from_status")
                .null(),
        )
        .col(STATUS.column(manager, "alert_transitions", "to_status"))
        .col(integer("version_id"))
        .col(string_len("actor", 100))
        .col(text_null("reason"))
        .col(timestamp_now(manager, "created_at"))
        .index(&mut unique(
            "uq_alert_transitions_alert_version",
            &["alert_id", "version_id"],
        ))
        .foreign_key(&mut references(
            "alert_transitions",
            "alert_id",
            "alerts",
            Cascade,
        ))
        .take();
    manager.create_table(transitions).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_alert_transitions_created_at_id", &["created_at", "id"]),
        (
            "idx_alert_transitions_actor_created_at_id",
            &["actor", "created_at", "id"],
        ),
    ];
    indexes(manager, "alert_transitions", btrees).await
}

async fn create_manual_alert_cooldowns(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let cooldowns = Table::create()
        .table("manual_alert_cooldowns")
        .col(string_len("dedup_key", 255).primary_key())
        .col(uuid("alert_id"))
        .col(big_integer("raised_at_us"))
        .col(big_integer("cooldown_us"))
        .col(big_integer("suppressed_count").default(0))
        .col(big_integer_null("last_suppressed_at_us"))
        .take();
    manager.create_table(cooldowns).await
}

async fn create_alert_requests(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let requests = Table::create()
        .table("alert_requests")
        .col(string_len("request_id", 128).primary_key())
        .col(blob("fingerprint"))
        .col(uuid("alert_id"))
        .col(boolean("created"))
        .col(timestamp_now(manager, "created_at"))
        .foreign_key(&mut references(
            "alert_requests",
            "alert_id",
            "alerts",
            Cascade,
        ))
        .take();
    manager.create_table(requests).await?;
    // For the cascade.
    let btrees: &[(&str, &[&str])] = &[("idx_alert_requests_alert_id", &["alert_id"])];
    indexes(manager, "alert_requests", btrees).await
}
