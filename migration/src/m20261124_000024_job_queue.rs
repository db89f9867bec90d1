//! The queue behind `jobs`: when a job may run, who runs it under which lease, what it may take, what
//! makes it unique; and the settings of queues, types and schedules.

use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer, big_integer_null, blob_null, boolean, double_null, integer, integer_null,
        json_binary_null, string_len, string_len_null, text_null, timestamp_with_time_zone,
        timestamp_with_time_zone_null, uuid, uuid_null,
    },
};

use crate::dialect::{check, drop_tables, indexes, per_backend, timestamp_now, unique};

/// Most jobs are finished, and in none of the indexes that the queue works with.
const INDEXES: &[&str] = &[
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
    "CREATE UNIQUE INDEX idx_job_attempts_job_attempt_unique ON job_attempts \
        (job_id, attempt_number)",
    "CREATE UNIQUE INDEX idx_job_logs_job_line_unique ON job_logs (job_id, line) \
        WHERE line IS NOT NULL",
    "CREATE INDEX idx_job_schedules_due ON job_schedules (next_tick_at) WHERE enabled",
];

/// The indexes of tables that stay.
const DROP_INDEXES: &[&str] = &[
    "DROP INDEX idx_jobs_claim",
    "DROP INDEX idx_jobs_running",
    "DROP INDEX idx_jobs_deadline",
    "DROP INDEX idx_jobs_completed_at_id",
    "DROP INDEX idx_jobs_dead_at_id",
    "DROP INDEX idx_jobs_request_id_unique",
    "DROP INDEX idx_jobs_unique_key_unique",
    "DROP INDEX idx_jobs_schedule_id_tick_at_unique",
    "DROP INDEX idx_jobs_schedule_id_active",
    "DROP INDEX idx_jobs_created_at_id",
    "DROP INDEX idx_job_attempts_job_attempt_unique",
    "DROP INDEX idx_job_logs_job_line_unique",
];

/// What was queued before may run at once. Other writers may have given attempts of a job the same
/// number: those of such a job are numbered anew, and no job is behind its attempts.
const ADOPT: &[&str] = &[
    "UPDATE jobs SET scheduled_at = created_at WHERE scheduled_at IS NULL",
    "UPDATE jobs SET queue_name = 'default' WHERE queue_name IS NULL AND status = 'queued'",
    "UPDATE job_attempts SET attempt_number = (SELECT count(*) FROM job_attempts AS earlier \
            WHERE earlier.job_id = job_attempts.job_id AND (earlier.started_at, earlier.id) \
                <= (job_attempts.started_at, job_attempts.id)) \
        WHERE job_id IN (SELECT job_id FROM job_attempts GROUP BY job_id, attempt_number \
            HAVING count(*) > 1)",
    "UPDATE jobs SET attempt_number = (SELECT max(attempt_number) FROM job_attempts \
            WHERE job_id = jobs.id) \
        WHERE attempt_number < (SELECT max(attempt_number) FROM job_attempts \
            WHERE job_id = jobs.id)",
];

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, columns) in columns() {
            // SQLite adds one column at a time.
            for column in columns {
                let alter = Table::alter().table(table).add_column(column).take();
                manager.alter_table(alter).await?;
            }
        }
        create_job_queues(manager).await?;
        create_job_types(manager).await?;
        create_job_schedules(manager).await?;
        per_backend(manager, ADOPT, ADOPT).await?;
        let newest: &[(&str, &[&str])] = &[("idx_jobs_created_at_id", &["created_at", "id"])];
        indexes(manager, "jobs", newest).await?;
        per_backend(manager, INDEXES, INDEXES).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        per_backend(manager, DROP_INDEXES, DROP_INDEXES).await?;
        drop_tables(manager, &["job_schedules", "job_types", "job_queues"]).await?;
        for (table, columns) in columns() {
            for column in columns.into_iter().rev() {
                let name = column.get_column_name();
                let alter = Table::alter().table(table).drop_column(name).take();
                manager.alter_table(alter).await?;
            }
        }
        Ok(())
    }
}

/// The columns that the owner's tables gain.
fn columns() -> [(&'static str, Vec<ColumnDef>); 4] {
    let jobs = vec![
        json_binary_null("payload"),
        timestamp_with_time_zone_null("scheduled_at"),
        string_len("concurrency_key", 200).default("").take(),
        integer("failures").default(0).take(),
        integer("rescues").default(0).take(),
        integer("max_rescues").default(3).take(),
        big_integer_null("timeout_ms"),
        timestamp_with_time_zone_null("attempt_deadline_at"),
        timestamp_with_time_zone_null("deadline_at"),
        json_binary_null("retry_policy"),
        boolean("dead_letter").default(true).take(),
        timestamp_with_time_zone_null("dead_at"),
        uuid_null("lease_id"),
        string_len_null("worker_id", 100),
        big_integer_null("lease_ms"),
        timestamp_with_time_zone_null("lease_expires_at"),
        timestamp_with_time_zone_null("heartbeat_at"),
        timestamp_with_time_zone_null("cancel_requested_at"),
        string_len_null("cancel_requested_by", 100),
        text_null("cancel_reason"),
        string_len_null("unique_key", 255),
        big_integer("unique_period").default(0).take(),
        integer("unique_states").default(0).take(),
        string_len_null("request_id", 100),
        blob_null("request_hash"),
        uuid_null("schedule_id"),
        timestamp_with_time_zone_null("tick_at"),
        string_len_null("error_code", 100),
        big_integer_null("items_processed"),
        big_integer_null("items_total"),
        timestamp_with_time_zone_null("progress_at"),
        big_integer("log_lines").default(0).take(),
        integer("version_id").default(1).take(),
        timestamp_with_time_zone_null("transitioned_at"),
    ];
    let attempts = vec![
        uuid_null("lease_id"),
        string_len_null("outcome", 20),
        string_len_null("error_code", 100),
    ];
    let logs = vec![big_integer_null("line")];
    let transitions = vec![
        integer_null("version_id"),
        integer_null("attempt_number"),
        string_len_null("actor", 100),
        text_null("reason"),
    ];
    [
        ("jobs", jobs),
        ("job_attempts", attempts),
        ("job_logs", logs),
        ("job_transitions", transitions),
    ]
}

async fn create_job_queues(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let queues = Table::create()
        .table("job_queues")
        .col(string_len("name", 100).primary_key())
        .col(text_null("description"))
        .col(boolean("paused").default(false))
        .col(timestamp_with_time_zone_null("paused_at"))
        .col(string_len_null("paused_by", 100))
        .col(text_null("pause_reason"))
        .col(integer_null("max_running"))
        .col(integer_null("max_running_per_key"))
        .col(timestamp_now(manager, "created_at"))
        .col(timestamp_now(manager, "updated_at"))
        .col(integer("version_id").default(1))
        .check(check("ck_job_queues_max_running_min", "max_running >= 1"))
        .check(check(
            "ck_job_queues_max_running_per_key_min",
            "max_running_per_key >= 1",
        ))
        .take();
    manager.create_table(queues).await
}

async fn create_job_types(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let types = Table::create()
        .table("job_types")
        .col(string_len("name", 50).primary_key())
        .col(text_null("description"))
        .col(integer_null("priority"))
        .col(integer_null("max_attempts"))
        .col(integer_null("max_rescues"))
        .col(big_integer_null("timeout_ms"))
        .col(big_integer_null("deadline_ms"))
        .col(big_integer_null("retry_initial_ms"))
        .col(big_integer_null("retry_max_ms"))
        .col(double_null("retry_multiplier"))
        .col(double_null("retry_jitter"))
        .col(boolean("dead_letter").default(true))
        .col(timestamp_now(manager, "created_at"))
        .col(timestamp_now(manager, "updated_at"))
        .col(integer("version_id").default(1))
        .check(check(
            "ck_job_types_priority_range",
            "priority >= 0 AND priority <= 4",
        ))
        .check(check("ck_job_types_max_attempts_min", "max_attempts >= 1"))
        .check(check("ck_job_types_max_rescues_min", "max_rescues >= 0"))
        .take();
    manager.create_table(types).await
}

async fn create_job_schedules(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let schedules = Table::create()
        .table("job_schedules")
        .col(uuid("id").primary_key())
        .col(string_len("name", 100))
        .col(text_null("description"))
        .col(boolean("enabled").default(true))
        .col(string_len("cron", 200))
        .col(string_len("time_zone", 64).default("UTC"))
        .col(string_len("missed_policy", 16).default("run_once"))
        .col(string_len("job_type", 50))
        .col(string_len("queue_name", 100).default("default"))
        .col(integer_null("priority"))
        .col(integer_null("max_attempts"))
        .col(json_binary_null("payload"))
        .col(boolean("skip_if_active").default(false))
        .col(timestamp_with_time_zone("next_tick_at"))
        .col(timestamp_with_time_zone_null("last_tick_at"))
        .col(uuid_null("last_job_id"))
        .col(big_integer("missed_ticks").default(0))
        .col(timestamp_now(manager, "created_at"))
        .col(timestamp_now(manager, "updated_at"))
        .col(integer("version_id").default(1))
        .index(&mut unique("uq_job_schedules_name", &["name"]))
        .check(check(
            "ck_job_schedules_missed_policy",
            "missed_policy IN ('skip', 'run_once', 'run_all')",
        ))
        .check(check(
            "ck_job_schedules_priority_range",
            "priority >= 0 AND priority <= 4",
        ))
        .check(check(
            "ck_job_schedules_max_attempts_min",
            "max_attempts >= 1",
        ))
        .take();
    manager.create_table(schedules).await
}
