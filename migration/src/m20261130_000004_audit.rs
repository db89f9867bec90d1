//! `audit_logs`: actions on resources, with their actors.

use sea_orm_migration::{
    prelude::*,
    schema::{json_binary_null, string_len, string_len_null, text_null},
};

use crate::dialect::{brin_index, check, drop_tables, indexes, number_key, timestamp_now};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let audit_logs = Table::create()
            .table("audit_logs")
            .col(number_key("id"))
            .col(timestamp_now(manager, "timestamp"))
            .col(string_len("action", 50))
            .col(string_len("resource_type", 50))
            .col(string_len_null("resource_id", 255))
            .col(string_len("actor", 100))
            .col(string_len_null("ip_address", 45))
            .col(text_null("user_agent"))
            .col(json_binary_null("details"))
            .col(string_len("status", 20).default("success"))
            .check(check("ck_audit_logs_status", "status IN ('success', 'failure')"))
            .take();
        manager.create_table(audit_logs).await?;
        brin_index(manager, "audit_logs", "ix_audit_logs_timestamp_brin", "timestamp").await?;
        let btrees: &[(&str, &[&str])] = &[
            ("idx_audit_logs_timestamp", &["timestamp"]),
            ("idx_audit_logs_action", &["action"]),
            ("idx_audit_logs_resource_type", &["resource_type"]),
            ("idx_audit_logs_actor", &["actor"]),
            ("idx_audit_logs_status", &["status"]),
            ("idx_audit_logs_resource", &["resource_type", "resource_id"]),
        ];
        indexes(manager, "audit_logs", btrees).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["audit_logs"]).await
    }
}
