//! The ledger: jobs are locked, something happens to them, and all that it means is written in the same
//! transaction: their rows, attempts, transitions, logs and what watchers are told.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseTransaction,
    DbBackend, EntityTrait, QueryFilter, QuerySelect, Statement,
};
use uuid::Uuid;

use super::rows::{columns, read};
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
        state::{Job, Move, Report, Touched, label},
        types::Types,
    },
};

/// How many jobs one statement of SQLite locks.
const CHUNK: usize = 64;

/// Gives the transaction its number, if it has none yet.
pub(crate) const BEGIN: &str = "WITH me AS MATERIALIZED (SELECT pg_current_xact_id() AS xid)";

/// Whether a row was written by a later transaction than this one. Then the feed, which is in the order of
/// the transactions' numbers, would have this one's change of the row first.
pub(crate) const NEWER: &str = "age(j.xmin) < 0 AS newer";

/// Locks jobs, in the order of their ids, in which [`Db::by_key`](crate::db::Db::by_key) finds them. Those that do not
/// exist are left out.
pub(crate) async fn lock(
    tx: &DatabaseTransaction,
    ids: &[Uuid],
    types: &Types,
) -> Result<HashMap<Uuid, Job>> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    let columns = columns();
    let mut jobs = Vec::with_capacity(ids.len());
    if tx.get_database_backend() == DbBackend::Postgres {
        if !ids.is_empty() {
            let few = single_row_estimate("unnest($1::text::uuid[]) AS v(id)");
            let sql = format!(
                "{BEGIN} SELECT {columns}, {NEWER} FROM me, {few}, jobs AS j \
                WHERE j.id = v.id FOR UPDATE OF j"
            );
            let values = [array(&ids).into()];
            let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
            let rows = tx.query_all_raw(statement).await?;
            jobs = read(&rows, types)?;
            if jobs.len() < rows.len() {
                return Err(Error::Contended);
            }
        }
    } else {
        for ids in ids.chunks(CHUNK) {
            // Few different statements: of 1, 2, 4, … ids.
            let size = ids.len().next_power_of_two();
            let padded = ids.iter().chain(std::iter::repeat(&ids[0])).take(size);
            let places = vec!["?"; size].join(", ");
            let sql =
                format!("SELECT {columns}, FALSE AS newer FROM jobs AS j WHERE j.id IN ({places})");
            let values = padded.map(|id| (*id).into());
            let statement = Statement::from_sql_and_values(DbBackend::Sqlite, sql, values);
            jobs.extend(read(&tx.query_all_raw(statement).await?, types)?);
        }
    }
    Ok(jobs.into_iter().map(|job| (job.row.id, job)).collect())
}

/// Several ids for a statement of PostgreSQL.
pub(crate) fn array(ids: &[Uuid]) -> String {
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    format!("{{{}}}", ids.join(","))
}

/// Something that is to happen to jobs: to all of them, or to none.
#[derive(Debug, Clone)]
pub(crate) struct Task(pub Vec<(Uuid, Move)>);

/// Has tasks happen, in their order. Gives the jobs of each as they were after it, and what else has come of
/// them all.
pub(crate) async fn carry_out(
    tx: &DatabaseTransaction,
    tasks: Vec<Task>,
    types: &Arc<Types>,
    now: DateTime<Utc>,
) -> Result<(Vec<Result<Vec<Model>>>, Effects)> {
    let ids: Vec<_> = tasks
        .iter()
        .flat_map(|task| &task.0)
        .map(|(id, _)| *id)
        .collect();
    let mut jobs = lock(tx, &ids, types).await?;
    count_lines(tx, &tasks, &mut jobs).await?;
    let mut answers = Vec::with_capacity(tasks.len());
    for task in tasks {
        answers.push(happen(tx, task, &mut jobs, now).await?);
    }
    let mut jobs: Vec<_> = jobs.into_values().collect();
    jobs.sort_unstable_by_key(|job| job.row.id);
    let effects = write(tx, jobs).await?;
    Ok((answers, effects))
}

async fn happen(
    tx: &DatabaseTransaction,
    task: Task,
    jobs: &mut HashMap<Uuid, Job>,
    now: DateTime<Utc>,
) -> Result<Result<Vec<Model>>> {
    let alone = task.0.len() == 1;
    for (index, (id, what)) in task.0.iter().enumerate() {
        let index = (!alone).then_some(index);
        let may = match jobs.get(id) {
            Some(job) => job.may(what),
            None if matches!(what, Move::Report(..)) => Err(Error::LeaseLost {
                job_id: id.to_string(),
                status: "DELETED".into(),
                index,
            }),
            None => Err(Error::NotFound {
                resource: "job",
                id: id.to_string(),
            }),
        };
        if let Err(error) = may {
            return Ok(Err(error.with_index(index)));
        }
        if let (Move::Retry(..), Some(job)) = (what, jobs.get(id))
            && let Some((holder, status)) = holder(tx, &job.row, JobStatus::Queued).await?
        {
            return Ok(Err(Error::KeyHeld {
                field: "unique_key",
                job_id: holder.to_string(),
                status: label(status),
            }));
        }
    }
    let mut after = Vec::with_capacity(task.0.len());
    for (id, what) in task.0 {
        if let Some(job) = jobs.get_mut(&id) {
            job.happen(what, now, fastrand::f64());
            give_up_key(tx, job).await?;
            after.push(job.row.clone());
        }
    }
    Ok(Ok(after))
}

/// Another job that holds the unique key which this one is to hold in its next status, and does not in its
/// present one.
async fn holder(
    tx: &DatabaseTransaction,
    row: &Model,
    next: JobStatus,
) -> Result<Option<(Uuid, JobStatus)>> {
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

/// A job that comes into a status in which it would hold its unique key, and finds another holding it, goes
/// on without: what it reports must not fail for that.
async fn give_up_key(tx: &DatabaseTransaction, job: &mut Job) -> Result<()> {
    let row = &job.row;
    let held = row.unique_states & job.before.bit() != 0;
    if held || row.unique_key.is_none() || row.status == job.before {
        return Ok(());
    }
    if holder(tx, row, row.status).await?.is_some() {
        job.row.unique_states = 0;
        job.touched = Touched::Everything;
    }
    Ok(())
}

/// Counts the lines of attempts to which lines are added from an offset on.
async fn count_lines(
    tx: &DatabaseTransaction,
    tasks: &[Task],
    jobs: &mut HashMap<Uuid, Job>,
) -> Result<()> {
    let from_offset: HashSet<Uuid> = tasks
        .iter()
        .flat_map(|task| &task.0)
        .filter_map(|(id, what)| match what {
            Move::Report(_, Report::Logs { offset, .. }) => offset.map(|_| *id),
            Move::Report(..)
            | Move::Claim { .. }
            | Move::Rescue { .. }
            | Move::Expire
            | Move::Cancel(_)
            | Move::Retry(..)
            | Move::Refuse(_)
            | Move::Tell => None,
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

/// What dispatchers are to know of what was written, once it is committed.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Jobs that wait for a worker now.
    pub queued: Vec<Model>,
    /// Queues of which jobs do not run any more.
    pub freed: HashSet<String>,
}

/// Writes what has happened to locked jobs.
pub(crate) async fn write(tx: &DatabaseTransaction, jobs: Vec<Job>) -> Result<Effects> {
    let mut effects = Effects::default();
    let (mut rows, mut begun) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
    let mut ended = BTreeMap::<_, Vec<_>>::new();
    let (mut transitions, mut lines, mut changes) = (Vec::new(), Vec::new(), Vec::new());
    for mut job in jobs {
        begun.extend(job.begun);
        if let (false, Some(queue)) = (job.ended.is_empty(), &job.row.queue_name)
            && !effects.freed.contains(queue)
        {
            effects.freed.insert(queue.clone());
        }
        for attempt in job.ended {
            // Those that set the same columns are written together.
            let columns = (attempt.error_message.is_set(), attempt.result.is_set());
            ended.entry(columns).or_default().push(attempt);
        }
        transitions.append(&mut job.transitions);
        lines.append(&mut job.lines);
        changes.append(&mut job.changes);
        if let Some(row) = updated(&job.row, job.touched) {
            rows.entry(job.touched).or_default().push(row);
        }
        if job.touched == Touched::Everything && job.row.status == JobStatus::Queued {
            effects.queued.push(job.row);
        }
    }
    let mut records = feed_records::records(changes);
    if !lines.is_empty() {
        records.push(feed_records::logged(lines.clone()));
    }
    let mut writes = Inserts::new(tx.get_database_backend());
    for rows in rows.into_values() {
        writes.update(rows, &[Column::Id])?;
    }
    writes.add(begun)?;
    let attempt = [
        job_attempt::Column::JobId,
        job_attempt::Column::AttemptNumber,
    ];
    for ended in ended.into_values() {
        writes.update(ended, &attempt)?;
    }
    writes.add(transitions)?;
    writes.add(lines)?;
    writes.add(feed::rows(tx, records).await?)?;
    let written = writes.run(tx).await;
    if matches!(written, Err(Error::AlreadyExists { .. })) {
        // Somebody else took the unique key at this moment: it is seen when it is tried again.
        return Err(Error::Contended);
    }
    written?;
    Ok(effects)
}

/// What is to be written of a job's row.
fn updated(row: &Model, touched: Touched) -> Option<ActiveModel> {
    let mut set = ActiveModel {
        id: Set(row.id),
        ..<ActiveModel as ActiveModelTrait>::default()
    };
    match touched {
        Touched::Nothing => return None,
        Touched::Claim => {
            set_status(&mut set, row);
            set_lease(&mut set, row);
            set.started_at = Set(row.started_at);
            set.next_retry_at = Set(row.next_retry_at);
            set.worker_id = Set(row.worker_id.clone());
            set.lease_ms = Set(row.lease_ms);
        }
        Touched::Completion => {
            set_status(&mut set, row);
            set_lease(&mut set, row);
            set.completed_at = Set(row.completed_at);
            set.progress_percent = Set(row.progress_percent);
            set.result = Set(row.result.clone());
        }
        Touched::Lease => {
            set.lease_expires_at = Set(row.lease_expires_at);
            set.heartbeat_at = Set(row.heartbeat_at);
        }
        Touched::Progress => {
            set_progress(&mut set, row);
            set.lease_expires_at = Set(row.lease_expires_at);
            set.heartbeat_at = Set(row.heartbeat_at);
        }
        Touched::Everything => {
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
