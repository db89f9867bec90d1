//! Reading the rows of jobs that are to be moved. By the places of their many columns, for looking each up by its
//! name takes longer than the database needs to find the row.

use sea_orm::{DbErr, QueryResult};

use super::{moves::Job, types::Types};
use crate::{entity::job::Model, error::Result};

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

/// The columns of a job that must be known to move it, of the table `j`. The result stays where it is, and the
/// payload where it is not asked for.
pub(super) fn columns(with_payload: bool) -> String {
    let column = |name: &&str| match *name {
        "result" => "NULL AS result".to_string(),
        "payload" if !with_payload => "NULL AS payload".to_string(),
        name => format!("j.{name}"),
    };
    COLUMNS.iter().map(column).collect::<Vec<_>>().join(", ")
}

/// Reads jobs that a statement has locked, up to the first one that is newer, which the column after those of the
/// job says.
pub(super) fn read(rows: &[QueryResult], types: &Types) -> Result<Vec<Job>> {
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
