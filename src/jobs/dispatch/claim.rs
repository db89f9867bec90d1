//! Claims: in one transaction, due jobs are locked at the heads of their partitions and leased to workers.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, QueryFilter, QueryResult, QuerySelect,
    Statement, Value, sea_query::Expr,
};
use serde_json::Value as Json;
use uuid::Uuid;

use super::{partitions::Selection, payloads::Payloads};
use crate::{
    db::{Db, dialect::statement},
    entity::{job, job_queue},
    error::Result,
    jobs::{
        partition::{Partition, QueuePosition},
        state::{Job, Move},
        store::{
            apply::{self, ASSIGN_TRANSACTION_ID, IS_NEWER},
            rows,
        },
        types::Types,
    },
    rpc::json,
};

/// Maximum payload bytes per worker and claim, unless a single job has more. Claimed jobs share one response, and
/// most clients accept 4 MiB.
const MAX_PAYLOAD_BYTES: usize = 3 << 20;

/// Reads the first waiting job of every partition, with one index lookup per partition.
const SELECT_HEADS: &str = "WITH RECURSIVE heads(id) AS (\
    SELECT (SELECT id FROM jobs WHERE status = 'queued' AND queue_name IS NOT NULL \
        ORDER BY queue_name, job_type, priority, concurrency_key, scheduled_at, id LIMIT 1) \
    UNION ALL \
    SELECT (SELECT n.id FROM jobs AS n WHERE n.status = 'queued' AND n.queue_name IS NOT NULL \
        AND (n.queue_name, n.job_type, n.priority, n.concurrency_key) > \
            (j.queue_name, j.job_type, j.priority, j.concurrency_key) \
        ORDER BY n.queue_name, n.job_type, n.priority, n.concurrency_key, n.scheduled_at, n.id LIMIT 1) \
    FROM heads JOIN jobs AS j ON j.id = heads.id) \
    SELECT j.queue_name, j.job_type, j.priority, j.concurrency_key, j.scheduled_at, j.id \
    FROM heads JOIN jobs AS j ON j.id = heads.id WHERE j.scheduled_at IS NOT NULL";

/// True unless the queue of a job is paused.
const NOT_PAUSED: &str = "NOT EXISTS (SELECT 1 FROM job_queues AS q WHERE q.name = j.queue_name AND q.paused)";

/// Job leased to a worker.
#[derive(Debug, Clone)]
pub(crate) struct ClaimedJob {
    pub job: job::Model,
    pub lease_id: Uuid,
    pub lease: Duration,
}

/// Demand of a waiting worker.
#[derive(Debug, Clone)]
pub(crate) struct Demand {
    /// Number identifying the worker at the dispatcher of this process.
    pub registration: u64,
    pub worker_id: String,
    pub lease: Duration,
    /// Queues and job types accepted by the worker.
    pub filter: Arc<WorkerFilter>,
    /// Number of jobs that the worker can take.
    pub capacity: usize,
}

/// Queues and job types accepted by a worker.
#[derive(Debug, Default)]
pub(crate) struct WorkerFilter {
    pub queues: Vec<String>,
    /// Empty for all types.
    pub types: Vec<String>,
}

impl WorkerFilter {
    pub(crate) fn accepts(&self, partition: &Partition) -> bool {
        self.queues.contains(&partition.queue) && (self.types.is_empty() || self.types.contains(&partition.job_type))
    }
}

/// Settings by queue name, for queues with settings.
pub(crate) type QueueSettings = HashMap<String, job_queue::Model>;

/// Result of a claim.
#[derive(Debug, Default)]
pub(crate) struct ClaimResult {
    /// Claimed jobs, each with the registration of the receiving worker.
    pub claimed: Vec<(u64, ClaimedJob)>,
    /// Partitions served by the claim.
    pub served: Vec<ServedPartition>,
    /// Partitions with exhausted limits or a paused queue.
    pub blocked: Vec<Partition>,
}

/// Partition after a claim.
#[derive(Debug)]
pub(crate) struct ServedPartition {
    pub partition: Partition,
    /// Position of the last claimed job. `None` if no job was claimed.
    pub last: Option<QueuePosition>,
    /// True if no due job is left.
    pub is_empty: bool,
}

/// Locked jobs at the head of a partition.
struct LockedJobs {
    jobs: Vec<LockedJob>,
    /// True if no other due job is left in the partition.
    is_complete: bool,
}

/// Locked job. A large payload is not read with the row.
struct LockedJob {
    job: Job,
    has_unread_payload: bool,
}

/// Reads the position of the first waiting job of every partition.
pub(crate) async fn read_heads(db: &Db) -> Result<Vec<(Partition, QueuePosition)>> {
    let statement = Statement::from_string(db.backend(), SELECT_HEADS);
    let rows = db.reader().query_all_raw(statement).await?;
    let head = |row: &QueryResult| {
        let partition = Partition {
            queue: row.try_get("", "queue_name")?,
            job_type: row.try_get("", "job_type")?,
            priority: row.try_get("", "priority")?,
            key: row.try_get("", "concurrency_key")?,
        };
        Ok((partition, (row.try_get("", "scheduled_at")?, row.try_get("", "id")?)))
    };
    rows.iter().map(head).collect()
}

/// Reads the settings of all queues.
pub(crate) async fn read_queue_settings(db: &impl ConnectionTrait) -> Result<QueueSettings> {
    let queues = job_queue::Entity::find().all(db).await?;
    Ok(queues.into_iter().map(|queue| (queue.name.clone(), queue)).collect())
}

/// Reads the next waiting job of partitions, behind their floors.
pub(crate) async fn read_next_positions(
    db: &Db,
    selections: Vec<Selection>,
) -> Result<Vec<(Partition, QueuePosition)>> {
    let mut next_positions = Vec::new();
    for selection in selections {
        let (condition, values) = waiting_condition(&selection);
        let sql = format!(
            "SELECT j.scheduled_at, j.id FROM jobs AS j WHERE {condition} \
            ORDER BY j.scheduled_at, j.id LIMIT 1"
        );
        let statement = statement(db.reader(), &sql, values);
        if let Some(row) = db.reader().query_one_raw(statement).await? {
            let position = (row.try_get("", "scheduled_at")?, row.try_get("", "id")?);
            next_positions.push((selection.partition, position));
        }
    }
    Ok(next_positions)
}

/// SQL condition for the waiting jobs of a partition behind the floor, with the bound values.
fn waiting_condition(selection: &Selection) -> (String, Vec<Value>) {
    let mut values: Vec<Value> = vec![
        selection.partition.queue.clone().into(),
        selection.partition.job_type.clone().into(),
        selection.partition.priority.into(),
        selection.partition.key.clone().into(),
    ];
    let floor = selection.floor.map_or("", |(scheduled_at, id)| {
        values.extend([scheduled_at.into(), id.into()]);
        " AND (j.scheduled_at, j.id) > ($5, $6)"
    });
    let sql = "j.status = 'queued' AND j.queue_name = $1 AND j.job_type = $2 AND j.priority = $3 \
        AND j.concurrency_key = $4";
    (format!("{sql}{floor}"), values)
}

/// Claims jobs of the selected partitions for waiting workers. `settings` are the last known settings of queues.
pub(crate) async fn claim(
    db: &Db,
    selections: &[Selection],
    demands: &[Demand],
    settings: &QueueSettings,
    types: &Types,
    now: DateTime<Utc>,
) -> Result<ClaimResult> {
    db.write(async |tx| {
        let mut result = ClaimResult::default();
        let selections = apply_limits(tx, selections, settings, &mut result).await?;
        if selections.is_empty() {
            return Ok(result);
        }
        let heads = lock_heads(tx, &selections, types, now).await?;
        let locked = heads.iter().flat_map(|head| &head.jobs);
        let unread = locked.filter(|locked| locked.has_unread_payload);
        let mut unread_payloads = Payloads::of(unread.map(|locked| locked.job.row.id));
        let mut capacities: Vec<_> = demands.iter().map(|demand| demand.capacity).collect();
        let mut bytes_left: Vec<_> = demands.iter().map(|_| MAX_PAYLOAD_BYTES).collect();
        let (mut jobs, mut leases, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for (selection, head) in selections.iter().zip(heads) {
            let (mut last, mut is_empty) = (None, head.is_complete);
            for locked in head.jobs {
                let mut job = locked.job;
                let position = Partition::of(&job.row).map(|(_, position)| position);
                let Some(worker) = select_worker(&selection.partition, demands, &capacities) else {
                    is_empty = false;
                    break;
                };
                let mut payload = job.row.payload.take();
                if locked.has_unread_payload {
                    payload = unread_payloads.get(tx, job.row.id).await?;
                }
                let bytes = payload.as_ref().map_or(0, json::encoded_len);
                let is_deliverable = payload.as_ref().and_then(json::delivery_problem).is_none();
                if is_deliverable && bytes > bytes_left[worker] && bytes_left[worker] < MAX_PAYLOAD_BYTES {
                    // The remaining jobs wait for the next claim.
                    is_empty = false;
                    break;
                }
                last = position;
                if let Some(problem) = payload.as_ref().and_then(json::delivery_problem) {
                    let problem = format!("the payload cannot be sent to a worker: {problem}");
                    job.apply(Move::Refuse(problem), now, 0.0);
                    refused.push(job);
                    continue;
                }
                capacities[worker] -= 1;
                bytes_left[worker] = bytes_left[worker].saturating_sub(bytes);
                let demand = &demands[worker];
                let lease_id = Uuid::now_v7();
                let claim = Move::Claim { worker_id: demand.worker_id.clone(), lease_id, lease: demand.lease };
                job.apply(claim, now, 0.0);
                leases.push((demand, lease_id, payload));
                jobs.push(job);
            }
            result.served.push(ServedPartition { partition: selection.partition.clone(), last, is_empty });
        }
        let rows: Vec<_> = jobs.iter().map(|job| job.row.clone()).collect();
        jobs.append(&mut refused);
        apply::write_jobs(tx, jobs).await?;
        result.claimed = rows.into_iter().zip(leases).map(claimed_job).collect();
        Ok(result)
    })
    .await
}

/// Pairs a claimed job with the registration of the worker, and restores the payload.
fn claimed_job((job, (demand, lease_id, payload)): (job::Model, (&Demand, Uuid, Option<Json>))) -> (u64, ClaimedJob) {
    let claimed = ClaimedJob { job: job::Model { payload, ..job }, lease_id, lease: demand.lease };
    (demand.registration, claimed)
}

/// Index of the accepting worker with the largest remaining demand.
fn select_worker(partition: &Partition, demands: &[Demand], capacities: &[usize]) -> Option<usize> {
    let workers = demands.iter().zip(capacities).enumerate();
    workers
        .filter(|(_, (demand, capacity))| **capacity > 0 && demand.filter.accepts(partition))
        .max_by_key(|(_, (_, capacity))| **capacity)
        .map(|(index, _)| index)
}

/// Drops partitions of paused or full queues, and lowers `max_jobs` of the others to their limits. Counting the
/// running jobs of a limited queue locks the limits until the transaction ends. Without a paused or limited queue in
/// `known`, no query is needed: jobs of a queue paused a moment ago are excluded by the claim itself.
async fn apply_limits(
    tx: &DatabaseTransaction,
    selections: &[Selection],
    known: &QueueSettings,
    result: &mut ClaimResult,
) -> Result<Vec<Selection>> {
    let is_unlimited = |selection: &Selection| {
        let queue = known.get(&selection.partition.queue);
        queue.is_none_or(|queue| !queue.paused && !is_limited(queue))
    };
    if selections.iter().all(is_unlimited) {
        return Ok(selections.to_vec());
    }
    let queues = read_queue_settings(tx).await?;
    // By queue: jobs allowed in total, and running jobs by concurrency key.
    let mut limits: HashMap<&str, (i64, HashMap<String, i64>)> = HashMap::new();
    let mut allowed = Vec::with_capacity(selections.len());
    let mut names: Vec<_> = selections.iter().map(|selection| selection.partition.queue.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        if queues.get(name).is_some_and(is_limited) {
            let running_by_key = count_running(tx, name).await?;
            let limit = queues.get(name).and_then(|queue| queue.max_running);
            let running: i64 = running_by_key.values().sum();
            let total = limit.map_or(i64::MAX, |limit| i64::from(limit) - running);
            limits.insert(name, (total, running_by_key));
        }
    }
    for selection in selections {
        let queue = queues.get(&selection.partition.queue);
        if queue.is_some_and(|queue| queue.paused) {
            result.blocked.push(selection.partition.clone());
            continue;
        }
        let mut max_jobs = selection.max_jobs;
        if let (Some(queue), Some((total, running_by_key))) =
            (queue, limits.get_mut(selection.partition.queue.as_str()))
        {
            let running = running_by_key.entry(selection.partition.key.clone()).or_default();
            let key_limit = queue.max_running_per_key.filter(|_| !selection.partition.key.is_empty());
            let per_key = key_limit.map_or(i64::MAX, |limit| i64::from(limit) - *running);
            let capacity = usize::try_from((*total).min(per_key)).unwrap_or_default();
            max_jobs = max_jobs.min(capacity);
            if max_jobs == 0 {
                result.blocked.push(selection.partition.clone());
                continue;
            }
            let claimed = i64::try_from(max_jobs).unwrap_or(i64::MAX);
            *running += claimed;
            *total = total.saturating_sub(claimed);
        }
        allowed.push(Selection { max_jobs, ..selection.clone() });
    }
    Ok(allowed)
}

fn is_limited(queue: &job_queue::Model) -> bool {
    queue.max_running.is_some() || queue.max_running_per_key.is_some()
}

/// Counts the running jobs of a queue by concurrency key. No other transaction claims jobs of the queue before the
/// end of this transaction.
async fn count_running(tx: &DatabaseTransaction, queue: &str) -> Result<HashMap<String, i64>> {
    use job::Column::{ConcurrencyKey, Id, QueueName};

    if tx.get_database_backend() == DbBackend::Postgres {
        let sql = "SELECT pg_advisory_xact_lock(hashtextextended('watchpost job queue ' || $1, 0))";
        let values = [queue.into()];
        let lock = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
        tx.execute_raw(lock).await?;
    }
    let running: Vec<(String, i64)> = job::Entity::find()
        .select_only()
        .column(ConcurrencyKey)
        .column_as(Id.count(), "jobs")
        .filter(Expr::cust("status = 'running'"))
        .filter(QueueName.eq(queue))
        .group_by(ConcurrencyKey)
        .into_tuple()
        .all(tx)
        .await?;
    Ok(running.into_iter().collect())
}

/// Locks due jobs at the heads of partitions, skipping jobs locked by other transactions. On PostgreSQL, a job queued
/// by a transaction with a higher id than the id of this transaction is left for the next claim.
async fn lock_heads(
    tx: &DatabaseTransaction,
    selections: &[Selection],
    types: &Types,
    now: DateTime<Utc>,
) -> Result<Vec<LockedJobs>> {
    let backend = tx.get_database_backend();
    let columns = rows::columns_with_small_payloads(backend);
    let size = rows::payload_size(backend);
    let mut heads = Vec::with_capacity(selections.len());
    for selection in selections {
        let (condition, mut values) = waiting_condition(selection);
        let (now_index, limit_index) = (values.len() + 1, values.len() + 2);
        values.push(now.into());
        values.push(i64::try_from(selection.max_jobs).unwrap_or(i64::MAX).into());
        let sql = if backend == DbBackend::Postgres {
            format!(
                "{ASSIGN_TRANSACTION_ID} SELECT {columns}, {IS_NEWER}, {size} FROM me, jobs AS j WHERE {condition} AND {NOT_PAUSED} \
                AND j.scheduled_at <= ${now_index} ORDER BY j.scheduled_at, j.id LIMIT ${limit_index} \
                FOR UPDATE OF j SKIP LOCKED"
            )
        } else {
            format!(
                "SELECT {columns}, FALSE AS newer, {size} FROM jobs AS j WHERE {condition} AND {NOT_PAUSED} \
                AND j.scheduled_at <= ${now_index} ORDER BY j.scheduled_at, j.id LIMIT ${limit_index}"
            )
        };
        let rows = tx.query_all_raw(statement(tx, &sql, values)).await?;
        let read = rows::read_jobs(&rows, types)?;
        let is_complete = read.len() == rows.len() && read.len() < selection.max_jobs;
        let locked = |(row, job)| Ok(LockedJob { job, has_unread_payload: rows::unread_payload_bytes(row)?.is_some() });
        let jobs = rows.iter().zip(read).map(locked);
        heads.push(LockedJobs { jobs: jobs.collect::<Result<_>>()?, is_complete });
    }
    Ok(heads)
}
