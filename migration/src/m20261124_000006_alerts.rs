//! `alert_rules`, the `alerts` that they raise, and `alert_cooldowns`, which hold repeats back.

use ForeignKeyAction::{Cascade, SetNull};
use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer, big_integer_null, boolean, double_null, integer, integer_null, json_null,
        string_len, string_null, text_null, timestamp_with_time_zone_null, uuid, uuid_null,
    },
};

use crate::dialect::{Vocabulary, check, drop_tables, indexes, references, timestamp_now};

const SEVERITY: Vocabulary = Vocabulary {
    name: "alert_severity",
    labels: &["low", "medium", "high", "critical"],
};

const STATUS: Vocabulary = Vocabulary {
    name: "alert_status",
    labels: &["pending", "delivered", "acknowledged", "dismissed"],
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        SEVERITY.create(manager).await?;
        STATUS.create(manager).await?;
        create_alert_rules(manager).await?;
        create_alerts(manager).await?;
        create_alert_cooldowns(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["alert_cooldowns", "alerts", "alert_rules"]).await?;
        STATUS.drop(manager).await?;
        SEVERITY.drop(manager).await
    }
}

async fn create_alert_rules(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let rules = Table::create()
        .table("alert_rules")
        .col(uuid("id").primary_key())
        .col(string_len("name", 255))
        .col(text_null("description"))
        .col(boolean("enabled").default(true))
        .col(
            SEVERITY
                .column(manager, "alert_rules", "severity")
                .default("medium"),
        )
        .col(integer_null("risk_threshold"))
        .col(json_null("object_types"))
        .col(json_null("camera_ids"))
        .col(json_null("zone_ids"))
        .col(double_null("min_confidence"))
        .col(json_null("schedule"))
        .col(json_null("conditions"))
        .col(string_len("dedup_key_template", 255).default("{camera_id}:{rule_id}"))
        .col(integer("cooldown_seconds").default(300))
        .col(json_null("channels"))
        .col(timestamp_now(manager, "created_at"))
        .col(timestamp_now(manager, "updated_at"))
        .check(check(
            "ck_alert_rules_risk_threshold_range",
            "risk_threshold IS NULL OR (risk_threshold >= 0 AND risk_threshold <= 100)",
        ))
        .check(check(
            "ck_alert_rules_min_confidence_range",
            "min_confidence IS NULL OR (min_confidence >= 0.0 AND min_confidence <= 1.0)",
        ))
        .check(check(
            "ck_alert_rules_cooldown_non_negative",
            "cooldown_seconds >= 0",
        ))
        .take();
    manager.create_table(rules).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_alert_rules_name", &["name"]),
        ("idx_alert_rules_enabled", &["enabled"]),
        ("idx_alert_rules_severity", &["severity"]),
    ];
    indexes(manager, "alert_rules", btrees).await
}

async fn create_alerts(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let alerts = Table::create()
        .table("alerts")
        .col(uuid("id").primary_key())
        .col(big_integer("event_id"))
        .col(uuid_null("rule_id"))
        .col(
            SEVERITY
                .column(manager, "alerts", "severity")
                .default("medium"),
        )
        .col(
            STATUS
                .column(manager, "alerts", "status")
                .default("pending"),
        )
        .col(timestamp_now(manager, "created_at"))
        .col(timestamp_now(manager, "updated_at"))
        .col(timestamp_with_time_zone_null("delivered_at"))
        .col(json_null("channels"))
        .col(string_len("dedup_key", 255))
        .col(json_null("metadata"))
        .col(integer("version_id").default(1))
        .col(string_null("camera_id"))
        .foreign_key(&mut references("alerts", "event_id", "events", Cascade))
        .foreign_key(&mut references("alerts", "rule_id", "alert_rules", SetNull))
        .foreign_key(&mut references("alerts", "camera_id", "cameras", Cascade))
        .take();
    manager.create_table(alerts).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_alerts_event_id", &["event_id"]),
        ("idx_alerts_rule_id", &["rule_id"]),
        ("idx_alerts_severity", &["severity"]),
        ("idx_alerts_status", &["status"]),
        ("idx_alerts_created_at", &["created_at"]),
        ("idx_alerts_dedup_key", &["dedup_key"]),
        (
            "idx_alerts_dedup_key_created_at",
            &["dedup_key", "created_at"],
        ),
        ("idx_alerts_delivered_at", &["delivered_at"]),
        (
            "idx_alerts_event_rule_delivered",
            &["event_id", "rule_id", "delivered_at"],
        ),
        (
            "idx_alerts_camera_id_created_at",
            &["camera_id", "created_at"],
        ),
        ("idx_alerts_created_at_id", &["created_at", "id"]),
    ];
    indexes(manager, "alerts", btrees).await
}

async fn create_alert_cooldowns(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let cooldowns = Table::create()
        .table("alert_cooldowns")
        .col(uuid("rule_id"))
        .col(string_len("dedup_key", 255))
        .col(uuid("alert_id"))
        .col(big_integer("raised_at_us"))
        .col(big_integer("cooldown_us"))
        .col(big_integer("suppressed_count").default(0))
        .col(big_integer_null("last_suppressed_at_us"))
        .primary_key(Index::create().col("rule_id").col("dedup_key"))
        .foreign_key(&mut references(
            "alert_cooldowns",
            "rule_id",
            "alert_rules",
            Cascade,
        ))
        .take();
    manager.create_table(cooldowns).await
}
