//! `cameras`: sources of events and detections.

use sea_orm_migration::{
    prelude::*,
    schema::{string, timestamp_with_time_zone_null},
};

use crate::dialect::{check, drop_tables, execute, timestamp_now};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let cameras = Table::create()
            .table("cameras")
            .col(string("id").primary_key())
            .col(string("name"))
            .col(string("folder_path"))
            .col(string("status").default("online"))
            .col(timestamp_now(manager, "created_at"))
            .col(timestamp_with_time_zone_null("last_seen_at"))
            .col(timestamp_with_time_zone_null("deleted_at"))
            .check(check("ck_cameras_status", "status IN ('online', 'offline', 'error', 'unknown')"))
            .take();
        manager.create_table(cameras).await?;
        let unique = &[
            "CREATE UNIQUE INDEX idx_cameras_name_unique ON cameras (name)",
            "CREATE UNIQUE INDEX idx_cameras_folder_path_unique ON cameras (folder_path)",
        ];
        execute(manager, unique).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["cameras"]).await
    }
}
