//! `gpu_claims`: which host has which GPU, and since when each reporter is known.

use sea_orm_migration::{
    prelude::*,
    schema::{boolean, string_len, timestamp_with_time_zone, timestamp_with_time_zone_null},
};

use crate::dialect::{drop_tables, timestamp_now};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let claims = Table::create()
            .table("gpu_claims")
            .col(string_len("gpu_uuid", 96).primary_key())
            .col(string_len("host", 255))
            .col(string_len("claimant", 64))
            .col(boolean("is_agent"))
            .col(timestamp_with_time_zone("claimant_since"))
            .col(timestamp_now(manager, "claimed_at"))
            .take();
        manager.create_table(claims).await?;
        let reporters = Table::alter()
            .table("gpu_reporters")
            .add_column(timestamp_with_time_zone_null("first_seen_at"))
            .take();
        manager.alter_table(reporters).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let reporters = Table::alter()
            .table("gpu_reporters")
            .drop_column("first_seen_at")
            .take();
        manager.alter_table(reporters).await?;
        drop_tables(manager, &["gpu_claims"]).await
    }
}
