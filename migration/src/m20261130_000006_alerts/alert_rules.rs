//! `alert_rules`: conditions under which events raise alerts.

use sea_orm_migration::{
    prelude::*,
    schema::{boolean, double_null, integer, integer_null, json_null, string_len, text_null, uuid},
};

use super::SEVERITY;
use crate::dialect::{check, indexes, timestamp_now};

const TABLE: &str = "alert_rules";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let rules = Table::create()
        .table(TABLE)
        .col(uuid("id").primary_key())
        .col(string_len("name", 255))
        .col(text_null("description"))
        .col(boolean("enabled").default(true))
        .col(SEVERITY.column(manager, TABLE, "severity").default("medium"))
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
        .col(integer("version_id").default(1))
        .col(integer_null("flap_threshold"))
        .col(integer_null("flap_window_seconds"))
        .col(json_null("escalation"))
        .check(check(
            "ck_alert_rules_risk_threshold_range",
            "risk_threshold IS NULL OR (risk_threshold >= 0 AND risk_threshold <= 100)",
        ))
        .check(check(
            "ck_alert_rules_min_confidence_range",
            "min_confidence IS NULL OR (min_confidence >= 0.0 AND min_confidence <= 1.0)",
        ))
        .check(check("ck_alert_rules_cooldown_non_negative", "cooldown_seconds >= 0"))
        .check(check("ck_alert_rules_flap_threshold_range", "flap_threshold >= 1 AND flap_threshold <= 10000"))
        .check(check(
            "ck_alert_rules_flap_window",
            "(flap_threshold IS NULL) = (flap_window_seconds IS NULL) \
            AND (flap_window_seconds IS NULL \
            OR (flap_window_seconds >= 1 AND flap_window_seconds <= 86400))",
        ))
        .take();
    manager.create_table(rules).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_alert_rules_name", &["name"]),
        ("idx_alert_rules_enabled", &["enabled"]),
        ("idx_alert_rules_severity", &["severity"]),
    ];
    indexes(manager, TABLE, btrees).await
}
