//! Reading the rows of jobs that are to be moved. By the places of their many columns, for looking each up by its
//! name takes longer than the database needs to find the row.

use sea_orm::{DbBackend, DbErr, QueryResult};

use crate::{
    entity::job::Model,
    error::Result,
    jobs::{state::Job, types::Types},
};

/// How many bytes a payload has at most that is read with its job: PostgreSQL does not compress those.
const SMALL: i64 = 2_000;

macro_rules! fields {
    ($($field:ident),* $(,)?) => {
        /// The columns, in the order in which they are read.
        const COLUMNS: &[&str] = &[$(stringify!($field)),*];

        fn model(row: &QueryResult) -> Result<Model, DbErr> {
            let mut places = 0..COLUMNS.len();
            let mut place = || places.next().unwrap_or_default();
            Ok(Model { $($field: row.try_get_by_index(place())?),* })
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

/// The columns of a job that must be known to move it, of the table `j`. Payload and result stay where they are.
pub(crate) fn columns() -> String {
    columns_with("NULL")
}

/// The same with payloads that are small. For [`payload_bytes`], `payload_size` follows the column that says which
/// jobs are newer.
pub(crate) fn columns_with_small_payloads(backend: DbBackend) -> String {
    let size = payload_size(backend);
    columns_with(&format!("CASE WHEN {size} <= {SMALL} THEN j.payload END"))
}

/// The stored size of the payload of the table `j`, in bytes. On PostgreSQL large ones are compressed.
pub(crate) fn payload_size(backend: DbBackend) -> &'static str {
    if backend == DbBackend::Postgres {
        "pg_column_size(j.payload)::bigint"
    } else {
        "octet_length(j.payload)"
    }
}

fn columns_with(payload: &str) -> String {
    let column = |name: &&str| match *name {
        "result" => "NULL AS result".to_string(),
        "payload" => format!("{payload} AS payload"),
        name => format!("j.{name}"),
    };
    COLUMNS.iter().map(column).collect::<Vec<_>>().join(", ")
}

/// The stored size of a payload that was left where it is, if it was.
pub(crate) fn payload_bytes(row: &QueryResult) -> Result<Option<i64>> {
    let size: Option<i64> = row.try_get_by_index(COLUMNS.len() + 1)?;
    Ok(size.filter(|size| *size > SMALL))
}

/// Reads jobs that a statement has locked, up to the first one that is newer, which the column after those of the
/// job says.
pub(crate) fn read(rows: &[QueryResult], types: &Types) -> Result<Vec<Job>> {
    let mut jobs = Vec::with_capacity(rows.len());
    for row in rows {
        if row.try_get_by_index::<Option<bool>>(COLUMNS.len())? == Some(true) {
            break;
        }
        let row = model(row)?;
        let policy = types.of(&row.job_type).retry;
        jobs.push(Job::new(row, policy));
    }
    Ok(jobs)
}
