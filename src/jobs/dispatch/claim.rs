//! Claiming: jobs are taken from the heads of their lines and given to workers, in one transaction.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, QueryFilter,
    QueryResult, QuerySelect, Statement, Value, sea_query::Expr,
};
use serde_json::Value as Json;
use uuid::Uuid;

use super::{
    partitions::{Line, Spot, Take},
    payloads::Payloads,
};
use crate::{
    db::Db,
    entity::{job, job_queue},
    error::Result,
    jobs::{
        state::{Job, Move},
        store::{
            apply::{self, BEGIN, NEWER},
            rows,
        },
        types::Types,
    },
    rpc::json,
};

/// How many bytes of payloads one claim gives a worker, unless a single one has more: they must fit in one response, of
/// which most clients take 4 MiB.
const LARGEST: usize = 3 << 20;

/// The first job of every line in which one waits.
const HEADS: &str = "WITH RECURSIVE heads(id) AS (\
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

/// Whether the queue of a job is not paused.
const NOT_PAUSED: &str =
    "NOT EXISTS (SELECT 1 FROM job_queues AS q WHERE q.name = j.queue_name AND q.paused)";

/// A job, and the lease under which a worker has it.
#[derive(Debug, Clone)]
pub(crate) struct Claimed {
    pub job: job::Model,
    pub lease_id: Uuid,
    pub lease: Duration,
}

/// A worker that wants jobs.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub place: u64,
    pub worker_id: String,
    pub lease: Duration,
    /// Those that it takes jobs from.
    pub accepts: Arc<Accepts>,
    pub want: usize,
}

/// What a worker takes.
#[derive(Debug, Default)]
pub(crate) struct Accepts {
    pub queues: Vec<String>,
    /// Empty: all.
    pub types: Vec<String>,
}

impl Accepts {
    pub(crate) fn takes(&self, line: &Line) -> bool {
        self.queues.contains(&line.queue)
            && (self.types.is_empty() || self.types.contains(&line.job_type))
    }
}

/// The settings of queues that have any.
pub(crate) type Queues = HashMap<String, job_queue::Model>;

/// What came of a claim.
#[derive(Debug, Default)]
pub(crate) struct Haul {
    /// By the place of the worker that has them.
    pub claimed: Vec<(u64, Claimed)>,
    /// What became of each line: the last place that was taken, and whether nothing is left behind it.
    pub lines: Vec<(Line, Option<Spot>, bool)>,
    /// Lines whose limits are exhausted.
    pub blocked: Vec<Line>,
}

/// The first place of every line in which something waits.
pub(crate) async fn heads(db: &Db) -> Result<Vec<(Line, Spot)>> {
    let statement = Statement::from_string(db.backend(), HEADS);
    let rows = db.reader().query_all_raw(statement).await?;
    let head = |row: &QueryResult| {
        let line = Line {
            queue: row.try_get("", "queue_name")?,
            job_type: row.try_get("", "job_type")?,
            priority: row.try_get("", "priority")?,
            key: row.try_get("", "concurrency_key")?,
        };
        Ok((
            line,
            (row.try_get("", "scheduled_at")?, row.try_get("", "id")?),
        ))
    };
    rows.iter().map(head).collect()
}

/// The settings of queues.
pub(crate) async fn queues(db: &impl ConnectionTrait) -> Result<Queues> {
    let queues = job_queue::Entity::find().all(db).await?;
    Ok(queues
        .into_iter()
        .map(|queue| (queue.name.clone(), queue))
        .collect())
}

/// When something is next due in these lines, behind their floors.
pub(crate) async fn peek(db: &Db, lines: Vec<Take>) -> Result<Vec<(Line, Spot)>> {
    let mut found = Vec::new();
    for take in lines {
        let (behind, values) = place(db.backend(), &take);
        let sql = format!(
            "SELECT j.scheduled_at, j.id FROM jobs AS j WHERE {behind} \
            ORDER BY j.scheduled_at, j.id LIMIT 1"
        );
        let statement = Statement::from_sql_and_values(db.backend(), sql, values);
        if let Some(row) = db.reader().query_one_raw(statement).await? {
            let spot = (row.try_get("", "scheduled_at")?, row.try_get("", "id")?);
            found.push((take.line, spot));
        }
    }
    Ok(found)
}

/// Which jobs wait in a line behind its floor.
fn place(backend: DbBackend, take: &Take) -> (String, Vec<Value>) {
    let mut values: Vec<Value> = vec![
        take.line.queue.clone().into(),
        take.line.job_type.clone().into(),
        take.line.priority.into(),
        take.line.key.clone().into(),
    ];
    let floor = take.floor.map_or("", |(at, id)| {
        values.extend([at.into(), id.into()]);
        if backend == DbBackend::Postgres {
            " AND (j.scheduled_at, j.id) > ($5, $6)"
        } else {
            " AND (j.scheduled_at, j.id) > (?5, ?6)"
        }
    });
    let sql = if backend == DbBackend::Postgres {
        "j.status = 'queued' AND j.queue_name = $1 AND j.job_type = $2 AND j.priority = $3 \
        AND j.concurrency_key = $4"
    } else {
        "j.status = 'queued' AND j.queue_name = ?1 AND j.job_type = ?2 AND j.priority = ?3 \
        AND j.concurrency_key = ?4"
    };
    (format!("{sql}{floor}"), values)
}

/// Takes jobs from lines and gives them to those who wish for some.
pub(crate) async fn claim(
    db: &Db,
    takes: &[Take],
    wishes: &[Wish],
    known: &Queues,
    types: &Types,
    now: DateTime<Utc>,
) -> Result<Haul> {
    db.write(async |tx| {
        let mut haul = Haul::default();
        let takes = within_limits(tx, takes, known, &mut haul).await?;
        if takes.is_empty() {
            return Ok(haul);
        }
        let heads = take(tx, &takes, types, now).await?;
        let mut wants: Vec<_> = wishes.iter().map(|wish| wish.want).collect();
        let waiting = heads.iter().flat_map(|(jobs, _)| jobs);
        let left = waiting.filter(|(_, is_left)| *is_left);
        let mut left = Payloads::of(left.map(|(job, _)| job.row.id));
        let mut room: Vec<_> = wishes.iter().map(|_| LARGEST).collect();
        let (mut jobs, mut payloads, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for (take, (waiting, all)) in takes.iter().zip(heads) {
            let (mut last, mut all) = (None, all);
            for (mut job, is_left) in waiting {
                let spot = Line::of(&job.row).map(|(_, spot)| spot);
                let Some(at) = whose(&take.line, wishes, &wants) else {
                    all = false;
                    break;
                };
                let mut payload = job.row.payload.take();
                if is_left {
                    payload = left.get(tx, job.row.id).await?;
                }
                let bytes = payload.as_ref().map_or(0, json::encoded_len);
                let is_deliverable = payload.as_ref().and_then(json::delivery_problem).is_none();
                if is_deliverable && bytes > room[at] && room[at] < LARGEST {
                    // The others are for the next claim.
                    all = false;
                    break;
                }
                last = spot;
                if let Some(problem) = payload.as_ref().and_then(json::delivery_problem) {
                    let problem = format!("the payload cannot be sent to a worker: {problem}");
                    job.happen(Move::Refuse(problem), now, 0.0);
                    refused.push(job);
                    continue;
                }
                wants[at] -= 1;
                room[at] = room[at].saturating_sub(bytes);
                let wish = &wishes[at];
                let lease_id = Uuid::now_v7();
                let what = Move::Claim {
                    worker_id: wish.worker_id.clone(),
                    lease_id,
                    lease: wish.lease,
                };
                job.happen(what, now, 0.0);
                payloads.push((wish, lease_id, payload));
                jobs.push(job);
            }
            haul.lines.push((take.line.clone(), last, all));
        }
        let rows: Vec<_> = jobs.iter().map(|job| job.row.clone()).collect();
        jobs.append(&mut refused);
        apply::write(tx, jobs).await?;
        haul.claimed = rows.into_iter().zip(payloads).map(claimed).collect();
        Ok(haul)
    })
    .await
}

fn claimed(
    (job, (wish, lease_id, payload)): (job::Model, (&Wish, Uuid, Option<Json>)),
) -> (u64, Claimed) {
    let claimed = Claimed {
        job: job::Model { payload, ..job },
        lease_id,
        lease: wish.lease,
    };
    (wish.place, claimed)
}

/// Who is given a job of this line: of those who take it, the one who wants most.
fn whose(line: &Line, wishes: &[Wish], wants: &[usize]) -> Option<usize> {
    let takers = wishes.iter().zip(wants).enumerate();
    let takers = takers.filter(|(_, (wish, want))| **want > 0 && wish.accepts.takes(line));
    takers.max_by_key(|(_, (_, want))| **want).map(|(at, _)| at)
}

/// Leaves out the lines of queues that are paused or full, and takes no more of others than their limits
/// allow. Who looks at the limits of a queue keeps others from doing so until the transaction ends. Most queues have
/// neither, by what is known of them, and cost no query: where one was paused a moment ago, nothing is found in it.
async fn within_limits(
    tx: &DatabaseTransaction,
    takes: &[Take],
    known: &Queues,
    haul: &mut Haul,
) -> Result<Vec<Take>> {
    let is_free = |take: &Take| {
        let queue = known.get(&take.line.queue);
        queue.is_none_or(|queue| !queue.paused && !is_limited(queue))
    };
    if takes.iter().all(is_free) {
        return Ok(takes.to_vec());
    }
    let queues = queues(tx).await?;
    let mut left: HashMap<&str, (i64, HashMap<String, i64>)> = HashMap::new();
    let mut allowed = Vec::with_capacity(takes.len());
    let mut names: Vec<_> = takes.iter().map(|take| take.line.queue.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        if queues.get(name).is_some_and(is_limited) {
            let by_key = running(tx, name).await?;
            let limit = queues.get(name).and_then(|queue| queue.max_running);
            let all: i64 = by_key.values().sum();
            let total = limit.map_or(i64::MAX, |limit| i64::from(limit) - all);
            left.insert(name, (total, by_key));
        }
    }
    for take in takes {
        let queue = queues.get(&take.line.queue);
        if queue.is_some_and(|queue| queue.paused) {
            haul.blocked.push(take.line.clone());
            continue;
        }
        let mut most = take.most;
        if let (Some(queue), Some((total, by_key))) =
            (queue, left.get_mut(take.line.queue.as_str()))
        {
            let of_key = by_key.entry(take.line.key.clone()).or_default();
            let per_key = queue
                .max_running_per_key
                .filter(|_| !take.line.key.is_empty());
            let per_key = per_key.map_or(i64::MAX, |limit| i64::from(limit) - *of_key);
            let room = usize::try_from((*total).min(per_key)).unwrap_or_default();
            most = most.min(room);
            if most == 0 {
                haul.blocked.push(take.line.clone());
                continue;
            }
            let taking = i64::try_from(most).unwrap_or(i64::MAX);
            *of_key += taking;
            *total = total.saturating_sub(taking);
        }
        allowed.push(Take {
            most,
            ..take.clone()
        });
    }
    Ok(allowed)
}

fn is_limited(queue: &job_queue::Model) -> bool {
    queue.max_running.is_some() || queue.max_running_per_key.is_some()
}

/// How many jobs of a queue run, by their keys. Nobody else claims any before the transaction ends who looks
/// here.
async fn running(tx: &DatabaseTransaction, queue: &str) -> Result<HashMap<String, i64>> {
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

/// Locks the jobs at the heads of lines that nobody else has locked. Says of each job whether its payload was left
/// where it is, for it is large, and of each line whether these are all that may be claimed there. On PostgreSQL one that was queued by a transaction with a higher number than this one's
/// is left for the next claim.
async fn take(
    tx: &DatabaseTransaction,
    takes: &[Take],
    types: &Types,
    now: DateTime<Utc>,
) -> Result<Vec<(Vec<(Job, bool)>, bool)>> {
    let backend = tx.get_database_backend();
    let columns = rows::columns_with_small_payloads(backend);
    let size = rows::payload_size(backend);
    let mut heads = Vec::with_capacity(takes.len());
    for take in takes {
        let (behind, mut values) = place(tx.get_database_backend(), take);
        let (at, most) = (values.len() + 1, values.len() + 2);
        values.push(now.into());
        values.push(i64::try_from(take.most).unwrap_or(i64::MAX).into());
        let sql = if tx.get_database_backend() == DbBackend::Postgres {
            format!(
                "{BEGIN} SELECT {columns}, {NEWER}, {size} FROM me, jobs AS j WHERE {behind} AND {NOT_PAUSED} \
                AND j.scheduled_at <= ${at} ORDER BY j.scheduled_at, j.id LIMIT ${most} \
                FOR UPDATE OF j SKIP LOCKED"
            )
        } else {
            format!(
                "SELECT {columns}, FALSE AS newer, {size} FROM jobs AS j WHERE {behind} AND {NOT_PAUSED} \
                AND j.scheduled_at <= ?{at} ORDER BY j.scheduled_at, j.id LIMIT ?{most}"
            )
        };
        let statement = Statement::from_sql_and_values(tx.get_database_backend(), sql, values);
        let rows = tx.query_all_raw(statement).await?;
        let jobs = rows::read(&rows, types)?;
        let all = jobs.len() == rows.len() && jobs.len() < take.most;
        let is_left = rows
            .iter()
            .map(|row| Ok(rows::payload_bytes(row)?.is_some()))
            .collect::<Result<Vec<_>>>()?;
        heads.push((jobs.into_iter().zip(is_left).collect(), all));
    }
    Ok(heads)
}
