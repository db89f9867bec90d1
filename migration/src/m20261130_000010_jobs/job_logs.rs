//! `job_logs`: log lines of each job.

use ForeignKeyAction::Cascade;
use sea_orm_migration::{
    prelude::*,
    schema::{big_integer_null, integer, json_binary_null, string_len, text, uuid},
};

use crate::dialect::{brin_index, check, execute, indexes, references, timestamp_now, uuid7_key};

const TABLE: &str = "job_logs";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let logs = Table::create()
        .table(TABLE)
        .col(uuid7_key(manager, "id"))
        .col(uuid("job_id"))
        .col(integer("attempt_number").default(1))
        .col(timestamp_now(manager, "timestamp"))
        .col(string_len("level", 10).default("info"))
        .col(text("message"))
        .col(json_binary_null("context"))
        .col(big_integer_null("line"))
        .check(check("ck_job_logs_level", "level IN ('debug', 'info', 'warning', 'error')"))
        .check(check("ck_job_logs_attempt_number", "attempt_number >= 1"))
        .foreign_key(&mut references(TABLE, "job_id", "jobs", Cascade))
        .take();
    manager.create_table(logs).await?;
    brin_index(manager, TABLE, "ix_job_logs_timestamp_brin", "timestamp").await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_job_logs_job_id", &["job_id"]),
        ("idx_job_logs_job_attempt", &["job_id", "attempt_number"]),
        ("idx_job_logs_level", &["level"]),
        ("idx_job_logs_job_timestamp", &["job_id", "timestamp"]),
    ];
    indexes(manager, TABLE, btrees).await?;
    // Lines of other writers have no number, and may repeat.
    let unique = "CREATE UNIQUE INDEX idx_job_logs_job_line_unique ON job_logs (job_id, line) \
        WHERE line IS NOT NULL";
    execute(manager, &[unique]).await
}
