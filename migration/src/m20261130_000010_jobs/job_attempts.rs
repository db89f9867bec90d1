//! `job_attempts`: attempts of each job, with their lease and outcome.

use ForeignKeyAction::Cascade;
use sea_orm_migration::{
    prelude::*,
    schema::{
        integer, json_binary_null, string_len, string_len_null, text_null, timestamp_with_time_zone_null, uuid,
        uuid_null,
    },
};

use crate::dialect::{brin_index, check, execute, indexes, references, timestamp_now, uuid7_key};

const TABLE: &str = "job_attempts";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let attempts = Table::create()
        .table(TABLE)
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
        .col(uuid_null("lease_id"))
        .col(string_len_null("outcome", 20))
        .col(string_len_null("error_code", 100))
        .check(check("ck_job_attempts_status", "status IN ('started', 'succeeded', 'failed', 'cancelled')"))
        .check(check("ck_job_attempts_attempt_number", "attempt_number >= 1"))
        .check(check("ck_job_attempts_time_order", "ended_at IS NULL OR ended_at >= started_at"))
        .foreign_key(&mut references(TABLE, "job_id", "jobs", Cascade))
        .take();
    manager.create_table(attempts).await?;
    let brin = "ix_job_attempts_started_at_brin";
    brin_index(manager, TABLE, brin, "started_at").await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_job_attempts_job_id", &["job_id"]),
        ("idx_job_attempts_job_attempt", &["job_id", "attempt_number"]),
        ("idx_job_attempts_status", &["status"]),
    ];
    indexes(manager, TABLE, btrees).await?;
    let unique = "CREATE UNIQUE INDEX idx_job_attempts_job_attempt_unique ON job_attempts \
        (job_id, attempt_number)";
    execute(manager, &[unique]).await
}
