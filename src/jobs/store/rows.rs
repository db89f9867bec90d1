//! Row reader of locked jobs. Columns are read by index: looking up many columns by name takes longer than the query.

use sea_orm::{DbBackend, DbErr, QueryResult};

use crate::{
    db::dialect::Sql,
    entity::job::Model,
    error::Result,
    jobs::{state::Job, types::Types},
};

/// Maximum stored size of a payload read with its job, in bytes. PostgreSQL does not compress values of this size.
const MAX_INLINE_PAYLOAD_BYTES: i64 = 2_000;

macro_rules! fields {
    ($($field:ident),* $(,)?) => {
        /// Columns in reading order.
        const COLUMNS: &[&str] = &[$(stringify!($field)),*];

        fn read_model(row: &QueryResult) -> Result<Model, DbErr> {
            let mut indexes = 0..COLUMNS.len();
            let mut index = || indexes.next().unwrap_or_default();
            Ok(Model { $($field: row.try_get_by_index(index())?),* })
        }
    };
}

fields!(
    id,
    job_type,
    status,
    queue_name,
    priority,
    created_at,
    started_at,
    completed_at,
    progress_percent,
    current_step,
    result,
    error_message,
    error_traceback,
    attempt_number,
    max_attempts,
    next_retry_at,
    payload,
    scheduled_at,
    concurrency_key,
    failures,
    rescues,
    max_rescues,
    timeout_ms,
    attempt_deadline_at,
    deadline_at,
    retry_policy,
    dead_letter,
    dead_at,
    lease_id,
    worker_id,
    lease_ms,
    lease_expires_at,
    heartbeat_at,
    cancel_requested_at,
    cancel_requested_by,
    cancel_reason,
    unique_key,
    unique_period,
    unique_states,
    request_id,
    request_hash,
    schedule_id,
    tick_at,
    error_code,
    items_processed,
    items_total,
    progress_at,
    log_lines,
    version_id,
    transitioned_at,
);

/// Columns needed to move a job, from the table alias `j`. Payload and result are not read.
pub(crate) fn columns() -> String {
    columns_with("NULL")
}

/// Columns needed to claim a job: [`columns`] with small payloads. For [`unread_payload_bytes`], the statement
/// selects `newer` and `payload_size` behind these columns.
pub(crate) fn columns_with_small_payloads(backend: DbBackend) -> String {
    let size = payload_size(backend);
    columns_with(&format!("CASE WHEN {size} <= {MAX_INLINE_PAYLOAD_BYTES} THEN j.payload END"))
}

/// SQL expression for the stored size of a payload in bytes, from the table alias `j`. PostgreSQL compresses large
/// payloads.
pub(crate) fn payload_size(backend: DbBackend) -> &'static str {
    Sql { postgres: "pg_column_size(j.payload)::bigint", sqlite: "octet_length(j.payload)" }.text(backend)
}

fn columns_with(payload: &str) -> String {
    let column = |name: &&str| match *name {
        "result" => "NULL AS result".to_string(),
        "payload" => format!("{payload} AS payload"),
        name => format!("j.{name}"),
    };
    COLUMNS.iter().map(column).collect::<Vec<_>>().join(", ")
}

/// Stored size of a payload not read with the row. `None` if the payload was read, or absent.
pub(crate) fn unread_payload_bytes(row: &QueryResult) -> Result<Option<i64>> {
    let size: Option<i64> = row.try_get_by_index(COLUMNS.len() + 1)?;
    Ok(size.filter(|size| *size > MAX_INLINE_PAYLOAD_BYTES))
}

/// Reads locked jobs, up to the first job marked as newer by the column behind the job columns.
pub(crate) fn read_jobs(rows: &[QueryResult], types: &Types) -> Result<Vec<Job>> {
    let mut jobs = Vec::with_capacity(rows.len());
    for row in rows {
        if row.try_get_by_index::<Option<bool>>(COLUMNS.len())? == Some(true) {
            break;
        }
        let model = read_model(row)?;
        let policy = types.defaults_of(&model.job_type).retry;
        jobs.push(Job::new(model, policy));
    }
    Ok(jobs)
}
