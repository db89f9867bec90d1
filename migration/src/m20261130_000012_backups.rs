//! `backup_jobs` and `restore_jobs`: backups of the whole system to a file, and restores from one.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer_null, integer, json_binary_null, string_len_null, text_null, timestamp_with_time_zone_null},
};

use crate::dialect::{Vocabulary, check, drop_tables, indexes, timestamp_now, uuid7_key};

const BACKUP_STATUS: Vocabulary =
    Vocabulary { name: "backup_job_status", labels: &["pending", "running", "completed", "failed"] };

const RESTORE_STATUS: Vocabulary =
    Vocabulary { name: "restore_job_status", labels: &["pending", "validating", "restoring", "completed", "failed"] };

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        BACKUP_STATUS.create(manager).await?;
        RESTORE_STATUS.create(manager).await?;
        let backups = Table::create()
            .table("backup_jobs")
            .col(uuid7_key(manager, "id"))
            .col(BACKUP_STATUS.column(manager, "backup_jobs", "status").default("pending"))
            .col(integer("total_tables").default(8))
            .col(integer("completed_tables").default(0))
            .col(integer("progress_percent").default(0))
            .col(string_len_null("current_step", 255))
            .col(timestamp_now(manager, "created_at"))
            .col(timestamp_with_time_zone_null("started_at"))
            .col(timestamp_with_time_zone_null("completed_at"))
            .col(string_len_null("file_path", 512))
            .col(big_integer_null("file_size_bytes"))
            .col(json_binary_null("manifest_json"))
            .col(text_null("error_message"))
            .check(check("ck_backup_progress_range", "progress_percent >= 0 AND progress_percent <= 100"))
            .take();
        manager.create_table(backups).await?;
        let btrees: &[(&str, &[&str])] =
            &[("idx_backup_jobs_status", &["status"]), ("idx_backup_jobs_created_at", &["created_at"])];
        indexes(manager, "backup_jobs", btrees).await?;
        let restores = Table::create()
            .table("restore_jobs")
            .col(uuid7_key(manager, "id"))
            .col(RESTORE_STATUS.column(manager, "restore_jobs", "status").default("pending"))
            .col(string_len_null("backup_id", 64))
            .col(timestamp_with_time_zone_null("backup_created_at"))
            .col(integer("total_tables").default(8))
            .col(integer("completed_tables").default(0))
            .col(integer("progress_percent").default(0))
            .col(string_len_null("current_step", 255))
            .col(timestamp_now(manager, "created_at"))
            .col(timestamp_with_time_zone_null("started_at"))
            .col(timestamp_with_time_zone_null("completed_at"))
            .col(json_binary_null("items_restored"))
            .col(text_null("error_message"))
            .check(check("ck_restore_progress_range", "progress_percent >= 0 AND progress_percent <= 100"))
            .take();
        manager.create_table(restores).await?;
        let btrees: &[(&str, &[&str])] =
            &[("idx_restore_jobs_status", &["status"]), ("idx_restore_jobs_created_at", &["created_at"])];
        indexes(manager, "restore_jobs", btrees).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["restore_jobs", "backup_jobs"]).await?;
        RESTORE_STATUS.drop(manager).await?;
        BACKUP_STATUS.drop(manager).await
    }
}
