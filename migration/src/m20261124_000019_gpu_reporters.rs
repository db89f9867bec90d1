//! `gpu_reporters`: who reports GPU samples, and how far each has come.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, string_len},
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
        let reporters = Table::create()
            .table("gpu_reporters")
            .col(string_len("reporter_id", 64).primary_key())
            .col(string_len("host", 255))
            .col(big_integer("last_sequence"))
            .col(big_integer("lost").default(0))
            .col(timestamp_now(manager, "last_seen_at"))
            .take();
        manager.create_table(reporters).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["gpu_reporters"]).await
    }
}
