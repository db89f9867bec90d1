//! `job_schedules`: cron schedules that create jobs.

use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer, boolean, integer, integer_null, json_binary_null, string_len, text_null, timestamp_with_time_zone,
        timestamp_with_time_zone_null, uuid, uuid_null,
    },
};

use crate::dialect::{check, execute, timestamp_now, unique};

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
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
        .check(check("ck_job_schedules_missed_policy", "missed_policy IN ('skip', 'run_once', 'run_all')"))
        .check(check("ck_job_schedules_priority_range", "priority >= 0 AND priority <= 4"))
        .check(check("ck_job_schedules_max_attempts_min", "max_attempts >= 1"))
        .take();
    manager.create_table(schedules).await?;
    let due = "CREATE INDEX idx_job_schedules_due ON job_schedules (next_tick_at) WHERE enabled";
    execute(manager, &[due]).await
}
