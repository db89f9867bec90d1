//! `alert_flaps`: current flapping window of each rule with a flap threshold.

use ForeignKeyAction::Cascade;
use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, uuid, uuid_null},
};

use crate::dialect::references;

const TABLE: &str = "alert_flaps";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let flaps = Table::create()
        .table(TABLE)
        .col(uuid("rule_id").primary_key())
        .col(big_integer("window_started_at_us").default(0))
        .col(big_integer("matches").default(0))
        .col(uuid_null("alert_id"))
        .foreign_key(&mut references(TABLE, "rule_id", "alert_rules", Cascade))
        .take();
    manager.create_table(flaps).await
}
