//! `silences`, which hold alerts back; `alert_suppressions`: what was held back and why;
//! `alert_flaps`: how often each rule that may flap has fired of late; and which version of a rule
//! it is, and how often it may fire, in `alert_rules`.

use ForeignKeyAction::{Cascade, SetNull};
use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer, boolean, integer, integer_null, json_null, string, string_len,
        timestamp_with_time_zone, uuid, uuid_null,
    },
};

use crate::dialect::{check, drop_tables, indexes, number_key, references, timestamp_now};

/// The columns of `alert_rules`: the last one first, as they are dropped, for its CHECK names the one
/// before it.
const OF_RULES: [&str; 3] = ["flap_window_seconds", "flap_threshold", "version_id"];

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        extend_alert_rules(manager).await?;
        create_silences(manager).await?;
        create_alert_suppressions(manager).await?;
        create_alert_flaps(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["alert_flaps", "alert_suppressions", "silences"]).await?;
        for column in OF_RULES {
            let rules = Table::alter()
                .table("alert_rules")
                .drop_column(column)
                .take();
            manager.alter_table(rules).await?;
        }
        Ok(())
    }
}

async fn extend_alert_rules(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let version = integer("version_id").default(1).take();
    let threshold = integer_null("flap_threshold")
        .check(check(
            "ck_alert_rules_flap_threshold_range",
            "flap_threshold >= 1 AND flap_threshold <= 10000",
        ))
        .take();
    let window = integer_null("flap_window_seconds")
        .check(check(
            "ck_alert_rules_flap_window",
            "(flap_threshold IS NULL) = (flap_window_seconds IS NULL) \
            AND (flap_window_seconds IS NULL OR (flap_window_seconds >= 1 AND flap_window_seconds <= 86400))",
        ))
        .take();
    // SQLite adds one column at a time.
    for column in [version, threshold, window] {
        let rules = Table::alter()
            .table("alert_rules")
            .add_column(column)
            .take();
        manager.alter_table(rules).await?;
    }
    Ok(())
}

async fn create_silences(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let silences = Table::create()
        .table("silences")
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
    let btrees: &[(&str, &[&str])] = &[
        ("idx_silences_created_at_id", &["created_at", "id"]),
        ("idx_silences_ends_at", &["ends_at"]),
    ];
    indexes(manager, "silences", btrees).await
}

async fn create_alert_suppressions(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let on = "alert_suppressions";
    let suppressions = Table::create()
        .table(on)
        .col(number_key("id"))
        .col(big_integer("event_id"))
        .col(uuid_null("rule_id"))
        .col(string("camera_id"))
        .col(string_len("dedup_key", 255))
        .col(string("reason"))
        .col(uuid_null("silence_id"))
        .col(uuid_null("alert_id"))
        .col(timestamp_now(manager, "created_at"))
        .check(check(
            "ck_alert_suppressions_reason",
            "reason IN ('silenced', 'snoozed', 'flapping', 'cooldown')",
        ))
        .foreign_key(&mut references(on, "event_id", "events", Cascade))
        .foreign_key(&mut references(on, "rule_id", "alert_rules", SetNull))
        .foreign_key(&mut references(on, "camera_id", "cameras", Cascade))
        .take();
    manager.create_table(suppressions).await?;
    let btrees: &[(&str, &[&str])] = &[
        (
            "idx_alert_suppressions_created_at_id",
            &["created_at", "id"],
        ),
        ("idx_alert_suppressions_event_id", &["event_id"]),
        (
            "idx_alert_suppressions_rule_id_created_at_id",
            &["rule_id", "created_at", "id"],
        ),
        (
            "idx_alert_suppressions_camera_id_created_at_id",
            &["camera_id", "created_at", "id"],
        ),
        (
            "idx_alert_suppressions_silence_id_created_at_id",
            &["silence_id", "created_at", "id"],
        ),
    ];
    indexes(manager, on, btrees).await
}

async fn create_alert_flaps(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let flaps = Table::create()
        .table("alert_flaps")
        .col(uuid("rule_id").primary_key())
        .col(big_integer("window_started_at_us").default(0))
        .col(big_integer("matches").default(0))
        .col(uuid_null("alert_id"))
        .foreign_key(&mut references(
            "alert_flaps",
            "rule_id",
            "alert_rules",
            Cascade,
        ))
        .take();
    manager.create_table(flaps).await
}
