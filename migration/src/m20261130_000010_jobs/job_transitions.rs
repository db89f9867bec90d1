//! `job_transitions`: changes of the status of each job, with actor and reason.

use ForeignKeyAction::Cascade;
use sea_orm_migration::{
    prelude::*,
    schema::{integer_null, string_len, string_len_null, text_null, uuid},
};

use crate::dialect::{indexes, references, timestamp_now, uuid7_key};

const TABLE: &str = "job_transitions";

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let transitions = Table::create()
        .table(TABLE)
        .col(uuid7_key(manager, "id"))
        .col(uuid("job_id"))
        .col(string_len("from_status", 50))
        .col(string_len("to_status", 50))
        .col(timestamp_now(manager, "transitioned_at"))
        .col(string_len("triggered_by", 50).default("worker"))
        .col(text_null("metadata_json"))
        .col(integer_null("version_id"))
        .col(integer_null("attempt_number"))
        .col(string_len_null("actor", 100))
        .col(text_null("reason"))
        .foreign_key(&mut references(TABLE, "job_id", "jobs", Cascade))
        .take();
    manager.create_table(transitions).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_job_transitions_job_id", &["job_id"]),
        ("idx_job_transitions_transitioned_at", &["transitioned_at"]),
        ("idx_job_transitions_job_id_transitioned_at", &["job_id", "transitioned_at"]),
    ];
    indexes(manager, TABLE, btrees).await
}
