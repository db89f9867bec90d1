//! `alerts`: alerts raised by rules or by hand, with their current status.

use ForeignKeyAction::{Cascade, SetNull};
use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer, integer, json_null, string_len, string_len_null, string_null, timestamp_with_time_zone_null, uuid,
        uuid_null,
    },
};

use super::{SEVERITY, STATUS};
use crate::dialect::{indexes, references, timestamp_now};

const TABLE: &str = "alerts";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let alerts = Table::create()
        .table(TABLE)
        .col(uuid("id").primary_key())
        .col(big_integer("event_id"))
        .col(uuid_null("rule_id"))
        .col(SEVERITY.column(manager, TABLE, "severity").default("medium"))
        .col(STATUS.column(manager, TABLE, "status").default("pending"))
        .col(timestamp_now(manager, "created_at"))
        .col(timestamp_now(manager, "updated_at"))
        .col(timestamp_with_time_zone_null("delivered_at"))
        .col(json_null("channels"))
        .col(string_len("dedup_key", 255))
        .col(json_null("metadata"))
        .col(integer("version_id").default(1))
        .col(string_null("camera_id"))
        .col(big_integer("suppressed_count").default(0))
        .col(timestamp_with_time_zone_null("last_suppressed_at"))
        .col(timestamp_with_time_zone_null("acknowledged_at"))
        .col(string_len_null("acknowledged_by", 100))
        .col(timestamp_with_time_zone_null("dismissed_at"))
        .col(string_len_null("dismissed_by", 100))
        .foreign_key(&mut references(TABLE, "event_id", "events", Cascade))
        .foreign_key(&mut references(TABLE, "rule_id", "alert_rules", SetNull))
        .foreign_key(&mut references(TABLE, "camera_id", "cameras", Cascade))
        .take();
    manager.create_table(alerts).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_alerts_event_id", &["event_id"]),
        ("idx_alerts_rule_id", &["rule_id"]),
        ("idx_alerts_severity", &["severity"]),
        ("idx_alerts_status", &["status"]),
        ("idx_alerts_created_at", &["created_at"]),
        ("idx_alerts_dedup_key", &["dedup_key"]),
        ("idx_alerts_dedup_key_created_at", &["dedup_key", "created_at"]),
        ("idx_alerts_delivered_at", &["delivered_at"]),
        ("idx_alerts_event_rule_delivered", &["event_id", "rule_id", "delivered_at"]),
        ("idx_alerts_camera_id_created_at", &["camera_id", "created_at"]),
        ("idx_alerts_created_at_id", &["created_at", "id"]),
    ];
    indexes(manager, TABLE, btrees).await
}
