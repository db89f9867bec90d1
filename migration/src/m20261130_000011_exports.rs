//! `export_jobs`: exports of data to files.

use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer_null, boolean, integer, integer_null, json_binary_null, string_len, string_len_null, text_null,
        timestamp_with_time_zone_null,
    },
};

use crate::dialect::{Vocabulary, check, drop_tables, indexes, is_postgres, timestamp_now, uuid7_key};

const STATUS: Vocabulary =
    Vocabulary { name: "export_job_status", labels: &["pending", "running", "completed", "failed"] };

/// Expiry of an exported file on SQLite: one week from now, in the text format of the ORM.
const SQLITE_NEXT_WEEK: &str = "replace(strftime('%Y-%m-%dT%H:%M:%f', 'now', '+7 days'), '.000', '') || '+00:00'";

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        STATUS.create(manager).await?;
        let next_week = if is_postgres(manager) { "now() + interval '7 days'" } else { SQLITE_NEXT_WEEK };
        let exports = Table::create()
            .table("export_jobs")
            .col(uuid7_key(manager, "id"))
            .col(STATUS.column(manager, "export_jobs", "status").default("pending"))
            .col(string_len("export_type", 50))
            .col(string_len("export_format", 20).default("csv"))
            .col(integer_null("total_items"))
            .col(integer("processed_items").default(0))
            .col(integer("progress_percent").default(0))
            .col(string_len_null("current_step", 255))
            .col(timestamp_now(manager, "created_at"))
            .col(timestamp_with_time_zone_null("started_at"))
            .col(timestamp_with_time_zone_null("completed_at"))
            .col(timestamp_with_time_zone_null("estimated_completion"))
            .col(string_len_null("output_path", 512))
            .col(big_integer_null("output_size_bytes"))
            .col(text_null("error_message"))
            .col(text_null("filter_params"))
            .col(timestamp_with_time_zone_null("expires_at").default(Expr::cust(next_week)))
            .col(integer("download_count").default(0))
            .col(timestamp_with_time_zone_null("last_downloaded_at"))
            .col(boolean("sensitivity_acknowledged").default(false))
            .col(timestamp_with_time_zone_null("acknowledged_at"))
            .col(integer_null("retention_days"))
            .col(boolean("legal_hold").default(false))
            .col(json_binary_null("compliance_metadata"))
            .check(check("ck_export_jobs_progress_range", "progress_percent >= 0 AND progress_percent <= 100"))
            .check(check("ck_export_jobs_processed_non_negative", "processed_items >= 0"))
            .check(check("ck_export_jobs_total_non_negative", "total_items IS NULL OR total_items >= 0"))
            .check(check("ck_export_jobs_size_non_negative", "output_size_bytes IS NULL OR output_size_bytes >= 0"))
            .check(check("ck_export_jobs_download_count_non_negative", "download_count >= 0"))
            .check(check("ck_export_jobs_retention_days_positive", "retention_days IS NULL OR retention_days > 0"))
            .take();
        manager.create_table(exports).await?;
        let btrees: &[(&str, &[&str])] = &[
            ("idx_export_jobs_status", &["status"]),
            ("idx_export_jobs_export_type", &["export_type"]),
            ("idx_export_jobs_created_at", &["created_at"]),
            ("idx_export_jobs_status_created_at", &["status", "created_at"]),
            ("idx_export_jobs_expires_at", &["expires_at"]),
            ("idx_export_jobs_legal_hold", &["legal_hold"]),
        ];
        indexes(manager, "export_jobs", btrees).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["export_jobs"]).await?;
        STATUS.drop(manager).await
    }
}
