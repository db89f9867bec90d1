//! `job_queues`: settings of queues: pause and concurrency limits.

use sea_orm_migration::{
    prelude::*,
    schema::{boolean, integer, integer_null, string_len, string_len_null, text_null, timestamp_with_time_zone_null},
};

use crate::dialect::{check, timestamp_now};

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
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
        .check(check("ck_job_queues_max_running_per_key_min", "max_running_per_key >= 1"))
        .take();
    manager.create_table(queues).await
}
