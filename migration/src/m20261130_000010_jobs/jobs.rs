//! `jobs`: units of work for workers, with status, lease, limits and progress.

use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer, big_integer_null, blob_null, boolean, integer, json_binary_null, string_len, string_len_null,
        text_null, timestamp_with_time_zone_null, uuid, uuid_null,
    },
};

use crate::dialect::{brin_index, check, execute, indexes, timestamp_now};

const TABLE: &str = "jobs";

/// Partial indexes. They stay small because most jobs are finished and in none of them. None has a
/// column that a heartbeat writes, so a heartbeat stays a HOT update on PostgreSQL.
const PARTIAL_INDEXES: &[&str] = &[
    "CREATE INDEX idx_jobs_claim ON jobs \
        (queue_name, job_type, priority, concurrency_key, scheduled_at, id) WHERE status = 'queued'",
    "CREATE INDEX idx_jobs_running ON jobs (queue_name, concurrency_key) WHERE status = 'running'",
    "CREATE INDEX idx_jobs_deadline ON jobs (deadline_at) \
        WHERE status = 'queued' AND deadline_at IS NOT NULL",
    "CREATE INDEX idx_jobs_completed_at_id ON jobs (completed_at, id) WHERE completed_at IS NOT NULL",
    "CREATE INDEX idx_jobs_dead_at_id ON jobs (dead_at, id) WHERE dead_at IS NOT NULL",
    "CREATE UNIQUE INDEX idx_jobs_request_id_unique ON jobs (request_id) \
        WHERE request_id IS NOT NULL",
    "CREATE UNIQUE INDEX idx_jobs_unique_key_unique ON jobs (job_type, unique_key, unique_period) \
        WHERE unique_key IS NOT NULL AND (unique_states & CASE status \
            WHEN 'queued' THEN 1 WHEN 'running' THEN 2 WHEN 'completed' THEN 4 \
            WHEN 'failed' THEN 8 WHEN 'cancelled' THEN 16 ELSE 0 END) <> 0",
    "CREATE UNIQUE INDEX idx_jobs_schedule_id_tick_at_unique ON jobs (schedule_id, tick_at) \
        WHERE schedule_id IS NOT NULL",
    "CREATE INDEX idx_jobs_schedule_id_active ON jobs (schedule_id) \
        WHERE schedule_id IS NOT NULL AND completed_at IS NULL",
];

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let jobs = Table::create()
        .table(TABLE)
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
        .col(json_binary_null("payload"))
        .col(timestamp_with_time_zone_null("scheduled_at"))
        .col(string_len("concurrency_key", 200).default(""))
        .col(integer("failures").default(0))
        .col(integer("rescues").default(0))
        .col(integer("max_rescues").default(3))
        .col(big_integer_null("timeout_ms"))
        .col(timestamp_with_time_zone_null("attempt_deadline_at"))
        .col(timestamp_with_time_zone_null("deadline_at"))
        .col(json_binary_null("retry_policy"))
        .col(boolean("dead_letter").default(true))
        .col(timestamp_with_time_zone_null("dead_at"))
        .col(uuid_null("lease_id"))
        .col(string_len_null("worker_id", 100))
        .col(big_integer_null("lease_ms"))
        .col(timestamp_with_time_zone_null("lease_expires_at"))
        .col(timestamp_with_time_zone_null("heartbeat_at"))
        .col(timestamp_with_time_zone_null("cancel_requested_at"))
        .col(string_len_null("cancel_requested_by", 100))
        .col(text_null("cancel_reason"))
        .col(string_len_null("unique_key", 255))
        .col(big_integer("unique_period").default(0))
        .col(integer("unique_states").default(0))
        .col(string_len_null("request_id", 100))
        .col(blob_null("request_hash"))
        .col(uuid_null("schedule_id"))
        .col(timestamp_with_time_zone_null("tick_at"))
        .col(string_len_null("error_code", 100))
        .col(big_integer_null("items_processed"))
        .col(big_integer_null("items_total"))
        .col(timestamp_with_time_zone_null("progress_at"))
        .col(big_integer("log_lines").default(0))
        .col(integer("version_id").default(1))
        .col(timestamp_with_time_zone_null("transitioned_at"))
        .check(check("ck_jobs_status", "status IN ('queued', 'running', 'completed', 'failed', 'cancelled')"))
        .check(check("ck_jobs_progress_range", "progress_percent >= 0 AND progress_percent <= 100"))
        .check(check("ck_jobs_priority_range", "priority >= 0 AND priority <= 4"))
        .check(check("ck_jobs_attempt_number_min", "attempt_number >= 1"))
        .check(check("ck_jobs_max_attempts_min", "max_attempts >= 1"))
        .check(check("ck_jobs_completed_after_created", "completed_at IS NULL OR completed_at >= created_at"))
        .check(check("ck_jobs_started_after_created", "started_at IS NULL OR started_at >= created_at"))
        .take();
    manager.create_table(jobs).await?;
    brin_index(manager, TABLE, "ix_jobs_created_at_brin", "created_at").await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_jobs_status", &["status"]),
        ("idx_jobs_job_type", &["job_type"]),
        ("idx_jobs_created_at", &["created_at"]),
        ("idx_jobs_created_at_id", &["created_at", "id"]),
        ("idx_jobs_queue_name", &["queue_name"]),
        ("idx_jobs_priority", &["priority"]),
        ("idx_jobs_status_created_at", &["status", "created_at"]),
        ("idx_jobs_job_type_status", &["job_type", "status"]),
    ];
    indexes(manager, TABLE, btrees).await?;
    execute(manager, PARTIAL_INDEXES).await
}
