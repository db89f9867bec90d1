//! `alert_suppressions`: alerts that were not raised although their rule matched, with the reason.

use ForeignKeyAction::{Cascade, SetNull};
use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, string, string_len, uuid_null},
};

use crate::dialect::{check, indexes, number_key, references, timestamp_now};

const TABLE: &str = "alert_suppressions";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let suppressions = Table::create()
        .table(TABLE)
        .col(number_key("id"))
        .col(big_integer("event_id"))
        .col(uuid_null("rule_id"))
        .col(string("camera_id"))
        .col(string_len("dedup_key", 255))
        .col(string("reason"))
        .col(uuid_null("silence_id"))
        .col(uuid_null("alert_id"))
        .col(timestamp_now(manager, "created_at"))
        .check(check("ck_alert_suppressions_reason", "reason IN ('silenced', 'snoozed', 'flapping', 'cooldown')"))
        .foreign_key(&mut references(TABLE, "event_id", "events", Cascade))
        .foreign_key(&mut references(TABLE, "rule_id", "alert_rules", SetNull))
        .foreign_key(&mut references(TABLE, "camera_id", "cameras", Cascade))
        .take();
    manager.create_table(suppressions).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_alert_suppressions_created_at_id", &["created_at", "id"]),
        ("idx_alert_suppressions_event_id", &["event_id"]),
        ("idx_alert_suppressions_rule_id_created_at_id", &["rule_id", "created_at", "id"]),
        ("idx_alert_suppressions_camera_id_created_at_id", &["camera_id", "created_at", "id"]),
        ("idx_alert_suppressions_silence_id_created_at_id", &["silence_id", "created_at", "id"]),
    ];
    indexes(manager, TABLE, btrees).await
}
