//! Application of job moves: jobs are locked and moved, and every consequence is written in the same transaction:
//! rows, attempts, transitions, logs and feed records.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait,
    QueryFilter, QuerySelect, Statement,
};
use uuid::Uuid;

use super::rows::{columns, read_jobs};
use crate::{
    db::bulk::{Inserts, single_row_estimate},
    entity::{
        job::{ActiveModel, Column, Entity, JobStatus, Model},
        job_attempt, job_log,
    },
    error::{Error, Result},
    feed,
    jobs::{
        feed_records,
        state::{ChangedColumns, Job, Move, Report, label},
        types::Types,
    },
};

/// Maximum number of jobs locked by one SQLite statement.
const MAX_IDS_PER_STATEMENT: usize = 64;

/// CTE assigning an id to the transaction, if it has none yet.
pub(crate) const ASSIGN_TRANSACTION_ID: &str = "WITH me AS MATERIALIZED (SELECT pg_current_xact_id() AS xid)";

/// True if a later transaction wrote the row. The feed is ordered by transaction id, so the change of this
/// transaction would appear before the earlier change of the row.
pub(crate) const IS_NEWER: &str = "age(j.xmin) < 0 AS newer";

/// Locks jobs in the order of their ids, as read through [`Db::by_key`](crate::db::Db::by_key). Missing jobs are left
/// out.
pub(crate) async fn lock(tx: &DatabaseTransaction, ids: &[Uuid], types: &Types) -> Result<HashMap<Uuid, Job>> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    let columns = columns();
    let mut jobs = Vec::with_capacity(ids.len());
    if tx.get_database_backend() == DbBackend::Postgres {
        if !ids.is_empty() {
            let id_rows = single_row_estimate("unnest($1::text::uuid[]) AS v(id)");
            let sql = format!(
                "{ASSIGN_TRANSACTION_ID} SELECT {columns}, {IS_NEWER} FROM me, {id_rows}, jobs AS j \
                WHERE j.id = v.id FOR UPDATE OF j"
            );
            let values = [uuid_array(&ids).into()];
            let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
            let rows = tx.query_all_raw(statement).await?;
            jobs = read_jobs(&rows, types)?;
            if jobs.len() < rows.len() {
                return Err(Error::Contended);
            }
        }
    } else {
        for chunk in ids.chunks(MAX_IDS_PER_STATEMENT) {
            // Sizes are powers of two, to keep the number of distinct statements small.
            let size = chunk.len().next_power_of_two();
            let padded = chunk.iter().chain(std::iter::repeat(&chunk[0])).take(size);
            let places = vec!["?"; size].join(", ");
            let sql = format!("SELECT {columns}, FALSE AS newer FROM jobs AS j WHERE j.id IN ({places})");
            let values = padded.map(|id| (*id).into());
            let statement = Statement::from_sql_and_values(DbBackend::Sqlite, sql, values);
            jobs.extend(read_jobs(&tx.query_all_raw(statement).await?, types)?);
        }
    }
    Ok(jobs.into_iter().map(|job| (job.row.id, job)).collect())
}

/// PostgreSQL array literal of ids.
pub(crate) fn uuid_array(ids: &[Uuid]) -> String {
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    format!("{{{}}}", ids.join(","))
}

/// Moves of jobs, applied all or none.
#[derive(Debug, Clone)]
pub(crate) struct Task(pub Vec<(Uuid, Move)>);

/// Runs tasks in their order. Returns the jobs of each task afterwards, and the effects of all tasks.
pub(crate) async fn run_tasks(
    tx: &DatabaseTransaction,
    tasks: Vec<Task>,
    types: &Arc<Types>,
    now: DateTime<Utc>,
) -> Result<(Vec<Result<Vec<Model>>>, Effects)> {
    let ids: Vec<_> = tasks.iter().flat_map(|task| &task.0).map(|(id, _)| *id).collect();
    let mut jobs = lock(tx, &ids, types).await?;
    count_attempt_lines(tx, &tasks, &mut jobs).await?;
    let mut answers = Vec::with_capacity(tasks.len());
    for task in tasks {
        answers.push(run_task(tx, task, &mut jobs, now).await?);
    }
    let mut jobs: Vec<_> = jobs.into_values().collect();
    jobs.sort_unstable_by_key(|job| job.row.id);
    let effects = write_jobs(tx, jobs).await?;
    Ok((answers, effects))
}

async fn run_task(
    tx: &DatabaseTransaction,
    task: Task,
    jobs: &mut HashMap<Uuid, Job>,
    now: DateTime<Utc>,
) -> Result<Result<Vec<Model>>> {
    let is_single = task.0.len() == 1;
    for (index, (id, job_move)) in task.0.iter().enumerate() {
        let index = (!is_single).then_some(index);
        let checked = match jobs.get(id) {
            Some(job) => job.check(job_move),
            None if matches!(job_move, Move::Report(..)) => {
                Err(Error::LeaseLost { job_id: id.to_string(), status: "DELETED".into(), index })
            }
            None => Err(Error::NotFound { resource: "job", id: id.to_string() }),
        };
        if let Err(error) = checked {
            return Ok(Err(error.with_index(index)));
        }
        if let (Move::Retry(..), Some(job)) = (job_move, jobs.get(id))
            && let Some((holder, status)) = key_holder(tx, &job.row, JobStatus::Queued).await?
        {
            return Ok(Err(Error::KeyHeld { field: "unique_key", job_id: holder.to_string(), status: label(status) }));
        }
    }
    let mut moved = Vec::with_capacity(task.0.len());
    for (id, job_move) in task.0 {
        if let Some(job) = jobs.get_mut(&id) {
            job.apply(job_move, now, fastrand::f64());
            drop_held_key(tx, job).await?;
            moved.push(job.row.clone());
        }
    }
    Ok(Ok(moved))
}

/// Another job holding the unique key that a job is about to hold. `None` for a job holding the key already.
async fn key_holder(tx: &DatabaseTransaction, row: &Model, next: JobStatus) -> Result<Option<(Uuid, JobStatus)>> {
    let Some(key) = row.unique_key.as_deref() else {
        return Ok(None);
    };
    if row.unique_states & next.bit() == 0 {
        return Ok(None);
    }
    let others: Vec<(Uuid, JobStatus, i32)> = Entity::find()
        .select_only()
        .columns([Column::Id, Column::Status, Column::UniqueStates])
        .filter(Column::JobType.eq(&*row.job_type))
        .filter(Column::UniqueKey.eq(key))
        .filter(Column::UniquePeriod.eq(row.unique_period))
        .filter(Column::Id.ne(row.id))
        .into_tuple()
        .all(tx)
        .await?;
    let holds = |(_, status, states): &(Uuid, JobStatus, i32)| states & status.bit() != 0;
    let holder = others.into_iter().find(holds);
    Ok(holder.map(|(id, status, _)| (id, status)))
}

/// Drops the unique key of a job that would enter a holding status while another job holds the key. Its report must
/// not fail for that reason.
async fn drop_held_key(tx: &DatabaseTransaction, job: &mut Job) -> Result<()> {
    let row = &job.row;
    let already_holds = row.unique_states & job.previous_status.bit() != 0;
    if already_holds || row.unique_key.is_none() || row.status == job.previous_status {
        return Ok(());
    }
    if key_holder(tx, row, row.status).await?.is_some() {
        job.row.unique_states = 0;
        job.changed_columns = ChangedColumns::Everything;
    }
    Ok(())
}

/// Counts the log lines of attempts with logs reported from an offset.
async fn count_attempt_lines(tx: &DatabaseTransaction, tasks: &[Task], jobs: &mut HashMap<Uuid, Job>) -> Result<()> {
    let from_offset: HashSet<Uuid> = tasks
        .iter()
        .flat_map(|task| &task.0)
        .filter_map(|(id, job_move)| match job_move {
            Move::Report(_, Report::Logs { offset, .. }) => offset.map(|_| *id),
            Move::Report(..)
            | Move::Claim { .. }
            | Move::Rescue { .. }
            | Move::Expire
            | Move::Cancel(_)
            | Move::Retry(..)
            | Move::Refuse(_)
            | Move::PublishProgress => None,
        })
        .collect();
    for id in from_offset {
        if let Some(job) = jobs.get_mut(&id) {
            let lines: Option<i64> = job_log::Entity::find()
                .select_only()
                .column_as(job_log::Column::Id.count(), "lines")
                .filter(job_log::Column::JobId.eq(id))
                .filter(job_log::Column::AttemptNumber.eq(job.row.attempt_number))
                .into_tuple()
                .one(tx)
                .await?;
            job.attempt_lines = Some(lines.unwrap_or_default());
        }
    }
    Ok(())
}

/// Effects of a committed transaction on dispatchers.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Newly queued jobs.
    pub queued: Vec<Model>,
    /// Queues with fewer running jobs.
    pub freed: HashSet<String>,
}

/// Writes the moves of locked jobs.
pub(crate) async fn write_jobs(tx: &DatabaseTransaction, jobs: Vec<Job>) -> Result<Effects> {
    let mut effects = Effects::default();
    let (mut rows, mut started) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
    let mut ended = BTreeMap::<_, Vec<_>>::new();
    let (mut transitions, mut lines, mut changes) = (Vec::new(), Vec::new(), Vec::new());
    for mut job in jobs {
        started.extend(job.started_attempt);
        if let (false, Some(queue)) = (job.ended_attempts.is_empty(), &job.row.queue_name)
            && !effects.freed.contains(queue)
        {
            effects.freed.insert(queue.clone());
        }
        for attempt in job.ended_attempts {
            // Attempts with the same columns share an update.
            let columns = (attempt.error_message.is_set(), attempt.result.is_set());
            ended.entry(columns).or_default().push(attempt);
        }
        transitions.append(&mut job.transitions);
        lines.append(&mut job.lines);
        changes.append(&mut job.changes);
        if let Some(row) = row_update(&job.row, job.changed_columns) {
            rows.entry(job.changed_columns).or_default().push(row);
        }
        if job.changed_columns == ChangedColumns::Everything && job.row.status == JobStatus::Queued {
            effects.queued.push(job.row);
        }
    }
    let mut records = feed_records::change_records(changes);
    if !lines.is_empty() {
        records.push(feed_records::log_record(lines.clone()));
    }
    let mut writes = Inserts::new(tx.get_database_backend());
    for rows in rows.into_values() {
        writes.update(rows, &[Column::Id])?;
    }
    writes.add(started)?;
    let attempt_key = [job_attempt::Column::JobId, job_attempt::Column::AttemptNumber];
    for attempts in ended.into_values() {
        writes.update(attempts, &attempt_key)?;
    }
    writes.add(transitions)?;
    writes.add(lines)?;
    writes.add(feed::rows(tx, records).await?)?;
    let result = writes.run(tx).await;
    if matches!(result, Err(Error::AlreadyExists { .. })) {
        // Another transaction took the unique key at the same time. The next try reads the holder.
        return Err(Error::Contended);
    }
    result?;
    Ok(effects)
}

/// Changed columns of a job row. `None` if the row is unchanged.
fn row_update(row: &Model, changed: ChangedColumns) -> Option<ActiveModel> {
    let mut set = ActiveModel { id: Set(row.id), ..<ActiveModel as ActiveModelTrait>::default() };
    match changed {
        ChangedColumns::Nothing => return None,
        ChangedColumns::Claim => {
            set_status(&mut set, row);
            set_lease(&mut set, row);
            set.started_at = Set(row.started_at);
            set.next_retry_at = Set(row.next_retry_at);
            set.worker_id = Set(row.worker_id.clone());
            set.lease_ms = Set(row.lease_ms);
        }
        ChangedColumns::Completion => {
            set_status(&mut set, row);
            set_lease(&mut set, row);
            set.completed_at = Set(row.completed_at);
            set.progress_percent = Set(row.progress_percent);
            set.result = Set(row.result.clone());
        }
        ChangedColumns::Lease => {
            set.lease_expires_at = Set(row.lease_expires_at);
            set.heartbeat_at = Set(row.heartbeat_at);
        }
        ChangedColumns::Progress => {
            set_progress(&mut set, row);
            set.lease_expires_at = Set(row.lease_expires_at);
            set.heartbeat_at = Set(row.heartbeat_at);
        }
        ChangedColumns::Everything => {
            set_status(&mut set, row);
            set_lease(&mut set, row);
            set_progress(&mut set, row);
            set_rest(&mut set, row);
        }
    }
    Some(set)
}

fn set_status(set: &mut ActiveModel, row: &Model) {
    set.status = Set(row.status);
    set.version_id = Set(row.version_id);
    set.transitioned_at = Set(row.transitioned_at);
}

fn set_lease(set: &mut ActiveModel, row: &Model) {
    set.lease_id = Set(row.lease_id);
    set.lease_expires_at = Set(row.lease_expires_at);
    set.heartbeat_at = Set(row.heartbeat_at);
    set.attempt_deadline_at = Set(row.attempt_deadline_at);
}

fn set_progress(set: &mut ActiveModel, row: &Model) {
    set.progress_percent = Set(row.progress_percent);
    set.current_step = Set(row.current_step.clone());
    set.items_processed = Set(row.items_processed);
    set.items_total = Set(row.items_total);
    set.progress_at = Set(row.progress_at);
    set.log_lines = Set(row.log_lines);
}

fn set_rest(set: &mut ActiveModel, row: &Model) {
    set.queue_name = Set(row.queue_name.clone());
    set.started_at = Set(row.started_at);
    set.completed_at = Set(row.completed_at);
    set.result = Set(row.result.clone());
    set.error_message = Set(row.error_message.clone());
    set.error_traceback = Set(row.error_traceback.clone());
    set.error_code = Set(row.error_code.clone());
    set.attempt_number = Set(row.attempt_number);
    set.next_retry_at = Set(row.next_retry_at);
    set.scheduled_at = Set(row.scheduled_at);
    set.failures = Set(row.failures);
    set.rescues = Set(row.rescues);
    set.deadline_at = Set(row.deadline_at);
    set.dead_at = Set(row.dead_at);
    set.worker_id = Set(row.worker_id.clone());
    set.cancel_requested_at = Set(row.cancel_requested_at);
    set.cancel_requested_by = Set(row.cancel_requested_by.clone());
    set.cancel_reason = Set(row.cancel_reason.clone());
    set.unique_states = Set(row.unique_states);
}
