//! `gpu_claims`: the host and the reporter that each GPU belongs to.

use sea_orm_migration::{
    prelude::*,
    schema::{boolean, string_len, timestamp_with_time_zone},
};

use crate::dialect::timestamp_now;

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let claims = Table::create()
        .table("gpu_claims")
        .col(string_len("gpu_uuid", 96).primary_key())
        .col(string_len("host", 255))
        .col(string_len("claimant", 64))
        .col(boolean("is_agent"))
        .col(timestamp_with_time_zone("claimant_since"))
        .col(timestamp_now(manager, "claimed_at"))
        .take();
    manager.create_table(claims).await
}
