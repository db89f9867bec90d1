//! `alert_transitions`: changes of the status of each alert, with actor and reason.

use ForeignKeyAction::Cascade;
use sea_orm_migration::{
    prelude::*,
    schema::{integer, string_len, text_null, uuid},
};

use super::STATUS;
use crate::dialect::{indexes, number_key, references, timestamp_now, unique};

const TABLE: &str = "alert_transitions";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let transitions = Table::create()
        .table(TABLE)
        .col(number_key("id"))
        .col(uuid("alert_id"))
        .col(STATUS.column(manager, TABLE, "from_status").null())
        .col(STATUS.column(manager, TABLE, "to_status"))
        .col(integer("version_id"))
        .col(string_len("actor", 100))
        .col(text_null("reason"))
        .col(timestamp_now(manager, "created_at"))
        .index(&mut unique("uq_alert_transitions_alert_version", &["alert_id", "version_id"]))
        .foreign_key(&mut references(TABLE, "alert_id", "alerts", Cascade))
        .take();
    manager.create_table(transitions).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_alert_transitions_created_at_id", &["created_at", "id"]),
        ("idx_alert_transitions_actor_created_at_id", &["actor", "created_at", "id"]),
    ];
    indexes(manager, TABLE, btrees).await
}
