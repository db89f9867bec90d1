//! `job_types`: defaults of job types, applied to jobs that do not override them.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer_null, boolean, double_null, integer, integer_null, string_len, text_null},
};

use crate::dialect::{check, timestamp_now};

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
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
        .check(check("ck_job_types_priority_range", "priority >= 0 AND priority <= 4"))
        .check(check("ck_job_types_max_attempts_min", "max_attempts >= 1"))
        .check(check("ck_job_types_max_rescues_min", "max_rescues >= 0"))
        .take();
    manager.create_table(types).await
}
