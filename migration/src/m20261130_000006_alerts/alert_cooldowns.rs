//! `alert_cooldowns`: last alert of each rule and deduplication key, whose cooldown suppresses repeats.

use ForeignKeyAction::Cascade;
use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, big_integer_null, string_len, uuid},
};

use crate::dialect::references;

const TABLE: &str = "alert_cooldowns";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let cooldowns = Table::create()
        .table(TABLE)
        .col(uuid("rule_id"))
        .col(string_len("dedup_key", 255))
        .col(uuid("alert_id"))
        .col(big_integer("raised_at_us"))
        .col(big_integer("cooldown_us"))
        .col(big_integer("suppressed_count").default(0))
        .col(big_integer_null("last_suppressed_at_us"))
        .primary_key(Index::create().col("rule_id").col("dedup_key"))
        .foreign_key(&mut references(TABLE, "rule_id", "alert_rules", Cascade))
        .take();
    manager.create_table(cooldowns).await
}
