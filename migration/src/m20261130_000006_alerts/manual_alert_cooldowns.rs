//! `manual_alert_cooldowns`: cooldowns of alerts raised by hand. `alert_cooldowns` can't hold them,
//! because its rows refer to a rule.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, big_integer_null, string_len, uuid},
};

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
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
