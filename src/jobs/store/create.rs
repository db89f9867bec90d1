//! Putting jobs into their queues.

use std::{collections::HashSet, sync::Arc};

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, Condition, ConnectionTrait,
    DatabaseTransaction, DbBackend, EntityTrait, QueryFilter, QuerySelect,
};
use uuid::Uuid;

use crate::{
    batch::group_commit::Writer,
    db::{
        Db,
        bulk::{Inserts, insert_new},
    },
    entity::job::{self, ActiveModel, Column, Entity, JobStatus},
    error::{Error, Result},
    feed::{self, Record},
    jobs::{feed_records, wakeups::Bell},
};

/// How often jobs are tried to be inserted, when those that keep them from it are gone when they are
/// looked for.
const TRIES: usize = 3;

/// How many jobs one query looks for.
const CHUNK: usize = 500;

/// What became of a job that was to be made.
#[derive(Debug, Clone)]
pub(crate) enum Made {
    /// It was made.
    Created(Box<job::Model>),
    /// The same request made it before.
    Existed(Uuid),
    /// Another job holds its unique key.
    KeyHeld { id: Uuid, status: JobStatus },
    /// Another request with other content had its `request_id`.
    RequestReused(Uuid),
}

/// Makes jobs that come at the same time in one transaction.
#[derive(Debug)]
pub(crate) struct Creator {
    pub db: Db,
    /// Rung for the jobs that were made.
    pub bell: Bell,
}

impl Writer for Creator {
    type Item = Arc<Vec<job::Model>>;
    type Answer = Vec<Made>;

    async fn write(&self, items: Vec<Self::Item>) -> Result<Vec<Result<Vec<Made>>>> {
        let jobs = || items.iter().flat_map(|jobs| jobs.iter().cloned()).collect();
        let mut tries = 1;
        let made = loop {
            let jobs: Vec<_> = jobs();
            match self.make(jobs).await {
                Err(Error::Contended) if tries < TRIES => tries += 1,
                made => break made?,
            }
        };
        let created = made.iter().filter_map(|made| match made {
            Made::Created(job) => Some(job.as_ref()),
            Made::Existed(_) | Made::KeyHeld { .. } | Made::RequestReused(_) => None,
        });
        self.bell.queued(created);
        let mut made = made.into_iter();
        let of = |jobs: &Self::Item| Ok(made.by_ref().take(jobs.len()).collect());
        Ok(items.iter().map(of).collect())
    }

    fn size(item: &Self::Item) -> usize {
        item.len()
    }
}

impl Creator {
    async fn make(&self, jobs: Vec<job::Model>) -> Result<Vec<Made>> {
        let backend = self.db.backend();
        if backend != DbBackend::Postgres || !jobs.iter().all(is_free) {
            return self.db.write(async |tx| insert(tx, jobs).await).await;
        }
        let mut writes = Inserts::new(backend);
        writes.add(rows(&jobs))?;
        let made = created(jobs);
        writes.add(feed::rows_on_postgres(records(&made)))?;
        self.db
            .write_statement(async |db| writes.run(db).await)
            .await?;
        Ok(made)
    }
}

/// Inserts jobs and announces those that were made. Gives what became of each, in their order.
pub(crate) async fn insert(tx: &DatabaseTransaction, jobs: Vec<job::Model>) -> Result<Vec<Made>> {
    let mut writes = Inserts::new(tx.get_database_backend());
    let made = if jobs.iter().all(is_free) {
        writes.add(rows(&jobs))?;
        created(jobs)
    } else {
        insert_keyed(tx, jobs).await?
    };
    writes.add(feed::rows(tx, records(&made)).await?)?;
    writes.run(tx).await?;
    Ok(made)
}

fn created(jobs: Vec<job::Model>) -> Vec<Made> {
    let jobs = jobs.into_iter();
    jobs.map(|job| Made::Created(job.into())).collect()
}

/// What watchers are told of those that were made.
fn records(made: &[Made]) -> Vec<Record> {
    let created = made.iter().filter_map(|made| match made {
        Made::Created(job) => Some(feed_records::created(job)),
        Made::Existed(_) | Made::KeyHeld { .. } | Made::RequestReused(_) => None,
    });
    feed_records::records(created.collect())
}

/// Whether nothing can keep a job from being made.
fn is_free(job: &job::Model) -> bool {
    job.request_id.is_none() && !holds_key(job) && job.schedule_id.is_none()
}

fn holds_key(job: &job::Model) -> bool {
    job.unique_key.is_some() && job.unique_states & job.status.bit() != 0
}

/// The database decides which of those are made that others may keep from it.
async fn insert_keyed(tx: &DatabaseTransaction, jobs: Vec<job::Model>) -> Result<Vec<Made>> {
    let mut made: Vec<Option<Made>> = vec![None; jobs.len()];
    for _ in 0..TRIES {
        let left: Vec<_> = (0..jobs.len()).filter(|at| made[*at].is_none()).collect();
        if left.is_empty() {
            break;
        }
        let trying: Vec<_> = left.iter().map(|at| jobs[*at].clone()).collect();
        let inserted: HashSet<Uuid> = insert_new(tx, rows(&trying)).await?.into_iter().collect();
        let refused = trying.iter().filter(|job| !inserted.contains(&job.id));
        let standing = Standing::of(tx, &refused.collect::<Vec<_>>()).await?;
        for at in left {
            let job = &jobs[at];
            made[at] = if inserted.contains(&job.id) {
                Some(Made::Created(job.clone().into()))
            } else {
                standing.instead_of(job)
            };
        }
    }
    // What stood in the way was gone each time that it was looked for.
    made.into_iter()
        .collect::<Option<_>>()
        .ok_or(Error::Contended)
}

/// Jobs that stand in the way of others.
struct Standing(Vec<Stands>);

struct Stands {
    id: Uuid,
    job_type: String,
    status: JobStatus,
    request_id: Option<String>,
    request_hash: Option<Vec<u8>>,
    unique_key: Option<String>,
    unique_period: i64,
    unique_states: i32,
    tick: Option<(Uuid, DateTime<Utc>)>,
}

impl Standing {
    async fn of(tx: &DatabaseTransaction, refused: &[&job::Model]) -> Result<Self> {
        let mut standing = Vec::new();
        for refused in refused.chunks(CHUNK) {
            let requests = refused.iter().filter_map(|job| job.request_id.clone());
            let keys = refused.iter().filter_map(|job| job.unique_key.clone());
            let schedules = refused.iter().filter_map(|job| job.schedule_id);
            let ticks = refused.iter().filter_map(|job| job.tick_at);
            let tick = Condition::all()
                .add(Column::ScheduleId.is_in(schedules))
                .add(Column::TickAt.is_in(ticks));
            let any = Condition::any()
                .add(Column::RequestId.is_in(requests))
                .add(Column::UniqueKey.is_in(keys))
                .add(tick);
            let rows: Vec<Row> = Entity::find()
                .select_only()
                .columns([
                    Column::Id,
                    Column::JobType,
                    Column::Status,
                    Column::RequestId,
                    Column::RequestHash,
                    Column::UniqueKey,
                    Column::UniquePeriod,
                    Column::UniqueStates,
                    Column::ScheduleId,
                    Column::TickAt,
                ])
                .filter(any)
                .into_tuple()
                .all(tx)
                .await?;
            standing.extend(rows.into_iter().map(Stands::from));
        }
        Ok(Self(standing))
    }

    fn instead_of(&self, job: &job::Model) -> Option<Made> {
        let request =
            |other: &&Stands| job.request_id.is_some() && other.request_id == job.request_id;
        if let Some(other) = self.0.iter().find(request) {
            return Some(if other.request_hash == job.request_hash {
                Made::Existed(other.id)
            } else {
                Made::RequestReused(other.id)
            });
        }
        let tick = job.schedule_id.zip(job.tick_at);
        if let Some(other) = self
            .0
            .iter()
            .find(|other| tick.is_some() && other.tick == tick)
        {
            return Some(Made::Existed(other.id));
        }
        let key = |other: &&Stands| {
            holds_key(job)
                && other.job_type == job.job_type
                && other.unique_key == job.unique_key
                && other.unique_period == job.unique_period
                && other.unique_states & other.status.bit() != 0
        };
        self.0.iter().find(key).map(|other| Made::KeyHeld {
            id: other.id,
            status: other.status,
        })
    }
}

type Row = (
    Uuid,
    String,
    JobStatus,
    Option<String>,
    Option<Vec<u8>>,
    Option<String>,
    i64,
    i32,
    Option<Uuid>,
    Option<DateTime<Utc>>,
);

impl From<Row> for Stands {
    fn from(row: Row) -> Self {
        Self {
            id: row.0,
            job_type: row.1,
            status: row.2,
            request_id: row.3,
            request_hash: row.4,
            unique_key: row.5,
            unique_period: row.6,
            unique_states: row.7,
            tick: row.8.zip(row.9),
        }
    }
}

/// Rows to be inserted: columns that none of the jobs needs are left to their defaults.
fn rows(jobs: &[job::Model]) -> Vec<ActiveModel> {
    let needed = |is: fn(&job::Model) -> bool| jobs.iter().any(is);
    let payload = needed(|job| job.payload.is_some());
    let key = needed(|job| !job.concurrency_key.is_empty());
    let deadline = needed(|job| job.deadline_at.is_some());
    let policy = needed(|job| job.retry_policy.is_some());
    let unique = needed(|job| job.unique_key.is_some());
    let request = needed(|job| job.request_id.is_some());
    let schedule = needed(|job| job.schedule_id.is_some());
    let row = |job: &job::Model| {
        let mut row = ActiveModel {
            id: Set(job.id),
            job_type: Set(job.job_type.clone()),
            status: Set(job.status),
            queue_name: Set(job.queue_name.clone()),
            priority: Set(job.priority),
            created_at: Set(job.created_at),
            max_attempts: Set(job.max_attempts),
            scheduled_at: Set(job.scheduled_at),
            max_rescues: Set(job.max_rescues),
            timeout_ms: Set(job.timeout_ms),
            dead_letter: Set(job.dead_letter),
            ..<ActiveModel as ActiveModelTrait>::default()
        };
        if payload {
            row.payload = Set(job.payload.clone());
        }
        if key {
            row.concurrency_key = Set(job.concurrency_key.clone());
        }
        if deadline {
            row.deadline_at = Set(job.deadline_at);
        }
        if policy {
            row.retry_policy = Set(job.retry_policy);
        }
        if unique {
            row.unique_key = Set(job.unique_key.clone());
            row.unique_period = Set(job.unique_period);
            row.unique_states = Set(job.unique_states);
        }
        if request {
            row.request_id = Set(job.request_id.clone());
            row.request_hash = Set(job.request_hash.clone());
        }
        if schedule {
            row.schedule_id = Set(job.schedule_id);
            row.tick_at = Set(job.tick_at);
        }
        row
    };
    jobs.iter().map(row).collect()
}
