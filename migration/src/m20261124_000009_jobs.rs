//! `jobs` and what is known of each: its attempts, logs and transitions.

use ForeignKeyAction::Cascade;
use sea_orm_migration::{
    prelude::*,
    schema::{
        integer, json_binary_null, string_len, string_len_null, text, text_null,
        timestamp_with_time_zone_null, uuid,
    },
};

use crate::dialect::{
    brin_index, check, drop_tables, indexes, per_backend, references, timestamp_now, uuid7_key,
};

/// A UUID version 7: a random one whose first 48 bits are milliseconds since 1970, and
/// whose version, four bits from bit 52 on, goes from 4 (0100) to 7 (0111).
const UUID7: &str = "
    CREATE OR REPLACE FUNCTION watchpost_uuid7() RETURNS uuid
    LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
        SELECT encode(set_bit(set_bit(overlay(
            uuid_send(gen_random_uuid())
            PLACING substring(
                int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
            FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid
    $$";

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        per_backend(manager, &[UUID7], &[]).await?;
        create_jobs(manager).await?;
        create_job_attempts(manager).await?;
        create_job_logs(manager).await?;
        create_job_transitions(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let tables = ["job_transitions", "job_logs", "job_attempts", "jobs"];
        drop_tables(manager, &tables).await?;
        per_backend(manager, &["DROP FUNCTION watchpost_uuid7()"], &[]).await
    }
}

async fn create_jobs(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let jobs = Table::create()
        .table("jobs")
        .col(uuid("id").primary_key())
        .col(string_len("job_type", 50))
        .col(string_len("status", 20).default("queued"))
        .col(string_len_null("queue_name", 100))
        .col(integer("priority").default(2))
        .col(timestamp_now(manager, "created_at"))
        .col(timestamp_with_time_zone_null("started_at"))
        .col(timestamp_with_time_zone_null("completed_at"))
        .col(integer("progress_percent").default(0))
        .col(string_len_null("current_step", 255))
        .col(json_binary_null("result"))
        .col(text_null("error_message"))
        .col(text_null("error_traceback"))
        .col(integer("attempt_number").default(1))
        .col(integer("max_attempts").default(3))
        .col(timestamp_with_time_zone_null("next_retry_at"))
        .check(check(
            "ck_jobs_status",
            "status IN ('queued', 'running', 'completed', 'failed', 'cancelled')",
        ))
        .check(check(
            "ck_jobs_progress_range",
            "progress_percent >= 0 AND progress_percent <= 100",
        ))
        .check(check(
            "ck_jobs_priority_range",
            "priority >= 0 AND priority <= 4",
        ))
        .check(check("ck_jobs_attempt_number_min", "attempt_number >= 1"))
        .check(check("ck_jobs_max_attempts_min", "max_attempts >= 1"))
        .check(check(
            "ck_jobs_completed_after_created",
            "completed_at IS NULL OR completed_at >= created_at",
        ))
        .check(check(
            "ck_jobs_started_after_created",
            "started_at IS NULL OR started_at >= created_at",
        ))
        .take();
    manager.create_table(jobs).await?;
    brin_index(manager, "jobs", "ix_jobs_created_at_brin", "created_at").await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_jobs_status", &["status"]),
        ("idx_jobs_job_type", &["job_type"]),
        ("idx_jobs_created_at", &["created_at"]),
        ("idx_jobs_queue_name", &["queue_name"]),
        ("idx_jobs_priority", &["priority"]),
        ("idx_jobs_status_created_at", &["status", "created_at"]),
        ("idx_jobs_job_type_status", &["job_type", "status"]),
    ];
    indexes(manager, "jobs", btrees).await
}

async fn create_job_attempts(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let attempts = Table::create()
        .table("job_attempts")
        .col(uuid7_key(manager, "id"))
        .col(uuid("job_id"))
        .col(integer("attempt_number").default(1))
        .col(timestamp_now(manager, "started_at"))
        .col(timestamp_with_time_zone_null("ended_at"))
        .col(string_len("status", 20).default("started"))
        .col(string_len_null("worker_id", 100))
        .col(text_null("error_message"))
        .col(text_null("error_traceback"))
        .col(json_binary_null("result"))
        .check(check(
            "ck_job_attempts_status",
            "status IN ('started', 'succeeded', 'failed', 'cancelled')",
        ))
        .check(check(
            "ck_job_attempts_attempt_number",
            "attempt_number >= 1",
        ))
        .check(check(
            "ck_job_attempts_time_order",
            "ended_at IS NULL OR ended_at >= started_at",
        ))
        .foreign_key(&mut references("job_attempts", "job_id", "jobs", Cascade))
        .take();
    manager.create_table(attempts).await?;
    let brin = "ix_job_attempts_started_at_brin";
    brin_index(manager, "job_attempts", brin, "started_at").await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_job_attempts_job_id", &["job_id"]),
        (
            "idx_job_attempts_job_attempt",
            &["job_id", "attempt_number"],
        ),
        ("idx_job_attempts_status", &["status"]),
    ];
    indexes(manager, "job_attempts", btrees).await
}

async fn create_job_logs(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let logs = Table::create()
        .table("job_logs")
        .col(uuid7_key(manager, "id"))
        .col(uuid("job_id"))
        .col(integer("attempt_number").default(1))
        .col(timestamp_now(manager, "timestamp"))
        .col(string_len("level", 10).default("info"))
        .col(text("message"))
        .col(json_binary_null("context"))
        .check(check(
            "ck_job_logs_level",
            "level IN ('debug', 'info', 'warning', 'error')",
        ))
        .check(check("ck_job_logs_attempt_number", "attempt_number >= 1"))
        .foreign_key(&mut references("job_logs", "job_id", "jobs", Cascade))
        .take();
    manager.create_table(logs).await?;
    brin_index(
        manager,
        "job_logs",
        "ix_job_logs_timestamp_brin",
        "timestamp",
    )
    .await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_job_logs_job_id", &["job_id"]),
        ("idx_job_logs_job_attempt", &["job_id", "attempt_number"]),
        ("idx_job_logs_level", &["level"]),
        ("idx_job_logs_job_timestamp", &["job_id", "timestamp"]),
    ];
    indexes(manager, "job_logs", btrees).await
}

async fn create_job_transitions(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let transitions = Table::create()
        .table("job_transitions")
        .col(uuid7_key(manager, "id"))
        .col(uuid("job_id"))
        .col(string_len("from_status", 50))
        .col(string_len("to_status", 50))
        .col(timestamp_now(manager, "transitioned_at"))
        .col(string_len("triggered_by", 50).default("worker"))
        .col(text_null("metadata_json"))
        .foreign_key(&mut references(
            "job_transitions",
            "job_id",
            "jobs",
            Cascade,
        ))
        .take();
    manager.create_table(transitions).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_job_transitions_job_id", &["job_id"]),
        ("idx_job_transitions_transitioned_at", &["transitioned_at"]),
        (
            "idx_job_transitions_job_id_transitioned_at",
            &["job_id", "transitioned_at"],
        ),
    ];
    indexes(manager, "job_transitions", btrees).await
}
