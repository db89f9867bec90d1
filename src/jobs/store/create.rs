//! Creation of jobs.

use std::{collections::HashSet, sync::Arc};

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, Condition, ConnectionTrait, DatabaseTransaction, DbBackend,
    EntityTrait, QueryFilter, QuerySelect,
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
    jobs::{feed_records, wakeups::Wakeups},
};

/// Maximum number of tries to insert jobs. A try fails if a conflicting job disappears before it is read.
const MAX_TRIES: usize = 3;

/// Maximum number of jobs per query for conflicts.
const MAX_JOBS_PER_QUERY: usize = 500;

/// Outcome of the creation of a job.
#[derive(Debug, Clone)]
pub(crate) enum CreateOutcome {
    /// The job was created.
    Created(Box<job::Model>),
    /// An earlier identical request created the job.
    Existed(Uuid),
    /// Another job holds the unique key.
    KeyHeld { id: Uuid, status: JobStatus },
    /// An earlier request with the same `request_id` had other content.
    RequestReused(Uuid),
}

/// Creates the jobs of concurrent requests in one transaction.
#[derive(Debug)]
pub(crate) struct Creator {
    pub db: Db,
    /// Notified of created jobs.
    pub wakeups: Wakeups,
}

impl CreateOutcome {
    /// Created job, if the job was created now.
    pub(crate) fn created_job(&self) -> Option<&job::Model> {
        match self {
            Self::Created(job) => Some(job),
            Self::Existed(_) | Self::KeyHeld { .. } | Self::RequestReused(_) => None,
        }
    }
}

impl Writer for Creator {
    type Item = Arc<Vec<job::Model>>;
    type Answer = Vec<CreateOutcome>;

    async fn write(&self, items: Vec<Self::Item>) -> Result<Vec<Result<Vec<CreateOutcome>>>> {
        let all_jobs = || items.iter().flat_map(|jobs| jobs.iter().cloned()).collect();
        let mut tries = 1;
        let outcomes = loop {
            let jobs: Vec<_> = all_jobs();
            match self.create(jobs).await {
                Err(Error::Contended) if tries < MAX_TRIES => tries += 1,
                result => break result?,
            }
        };
        let created = outcomes.iter().filter_map(CreateOutcome::created_job);
        self.wakeups.notify_queued(created);
        let mut outcomes = outcomes.into_iter();
        let outcomes_of = |jobs: &Self::Item| Ok(outcomes.by_ref().take(jobs.len()).collect());
        Ok(items.iter().map(outcomes_of).collect())
    }

    fn size(item: &Self::Item) -> usize {
        item.len()
    }
}

impl Creator {
    async fn create(&self, jobs: Vec<job::Model>) -> Result<Vec<CreateOutcome>> {
        let backend = self.db.backend();
        if backend != DbBackend::Postgres || !jobs.iter().all(is_unconstrained) {
            return self.db.write(async |tx| insert(tx, jobs).await).await;
        }
        let mut writes = Inserts::new(backend);
        writes.add(rows(&jobs))?;
        let outcomes = created_outcomes(jobs);
        writes.add(feed::rows_on_postgres(created_records(&outcomes)))?;
        self.db.write_statement(async |db| writes.run(db).await).await?;
        Ok(outcomes)
    }
}

/// Inserts jobs and records the created jobs in the feed. Returns the outcomes in the order of the jobs.
pub(crate) async fn insert(tx: &DatabaseTransaction, jobs: Vec<job::Model>) -> Result<Vec<CreateOutcome>> {
    let mut writes = Inserts::new(tx.get_database_backend());
    let outcomes = if jobs.iter().all(is_unconstrained) {
        writes.add(rows(&jobs))?;
        created_outcomes(jobs)
    } else {
        insert_constrained(tx, jobs).await?
    };
    writes.add(feed::rows(tx, created_records(&outcomes)).await?)?;
    writes.run(tx).await?;
    Ok(outcomes)
}

fn created_outcomes(jobs: Vec<job::Model>) -> Vec<CreateOutcome> {
    let jobs = jobs.into_iter();
    jobs.map(|job| CreateOutcome::Created(job.into())).collect()
}

/// Feed records of the created jobs.
fn created_records(outcomes: &[CreateOutcome]) -> Vec<Record> {
    let created = outcomes.iter().filter_map(CreateOutcome::created_job);
    feed_records::change_records(created.map(feed_records::created_change).collect())
}

/// Returns true if no constraint can prevent the insertion of the job.
fn is_unconstrained(job: &job::Model) -> bool {
    job.request_id.is_none() && !holds_key(job) && job.schedule_id.is_none()
}

fn holds_key(job: &job::Model) -> bool {
    job.unique_key.is_some() && job.unique_states & job.status.bit() != 0
}

/// Inserts jobs subject to unique constraints. The database decides between concurrent inserts.
async fn insert_constrained(tx: &DatabaseTransaction, jobs: Vec<job::Model>) -> Result<Vec<CreateOutcome>> {
    let mut outcomes: Vec<Option<CreateOutcome>> = vec![None; jobs.len()];
    for _ in 0..MAX_TRIES {
        let is_open = |index: &usize| outcomes[*index].is_none();
        let open: Vec<_> = (0..jobs.len()).filter(is_open).collect();
        if open.is_empty() {
            break;
        }
        let candidates: Vec<_> = open.iter().map(|index| jobs[*index].clone()).collect();
        let inserted = insert_new(tx, rows(&candidates)).await?;
        let inserted: HashSet<Uuid> = inserted.into_iter().collect();
        let refused = candidates.iter().filter(|job| !inserted.contains(&job.id));
        let conflicts = Conflicts::read(tx, &refused.collect::<Vec<_>>()).await?;
        for index in open {
            let job = &jobs[index];
            outcomes[index] = if inserted.contains(&job.id) {
                Some(CreateOutcome::Created(job.clone().into()))
            } else {
                conflicts.outcome_of(job)
            };
        }
    }
    // Each conflicting job disappeared before it was read.
    outcomes.into_iter().collect::<Option<_>>().ok_or(Error::Contended)
}

/// Existing jobs in conflict with jobs to insert.
struct Conflicts(Vec<Conflict>);

struct Conflict {
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

impl Conflicts {
    async fn read(tx: &DatabaseTransaction, refused: &[&job::Model]) -> Result<Self> {
        let mut conflicts = Vec::new();
        for refused in refused.chunks(MAX_JOBS_PER_QUERY) {
            let requests = refused.iter().filter_map(|job| job.request_id.clone());
            let keys = refused.iter().filter_map(|job| job.unique_key.clone());
            let schedules = refused.iter().filter_map(|job| job.schedule_id);
            let ticks = refused.iter().filter_map(|job| job.tick_at);
            let tick = Condition::all().add(Column::ScheduleId.is_in(schedules)).add(Column::TickAt.is_in(ticks));
            let is_conflict =
                Condition::any().add(Column::RequestId.is_in(requests)).add(Column::UniqueKey.is_in(keys)).add(tick);
            let rows: Vec<ConflictRow> = Entity::find()
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
                .filter(is_conflict)
                .into_tuple()
                .all(tx)
                .await?;
            conflicts.extend(rows.into_iter().map(Conflict::from));
        }
        Ok(Self(conflicts))
    }

    fn outcome_of(&self, job: &job::Model) -> Option<CreateOutcome> {
        let has_request_id = |other: &&Conflict| job.request_id.is_some() && other.request_id == job.request_id;
        if let Some(other) = self.0.iter().find(has_request_id) {
            return Some(if other.request_hash == job.request_hash {
                CreateOutcome::Existed(other.id)
            } else {
                CreateOutcome::RequestReused(other.id)
            });
        }
        let tick = job.schedule_id.zip(job.tick_at);
        if let Some(other) = self.0.iter().find(|other| tick.is_some() && other.tick == tick) {
            return Some(CreateOutcome::Existed(other.id));
        }
        let holds_same_key = |other: &&Conflict| {
            holds_key(job)
                && other.job_type == job.job_type
                && other.unique_key == job.unique_key
                && other.unique_period == job.unique_period
                && other.unique_states & other.status.bit() != 0
        };
        self.0.iter().find(holds_same_key).map(|other| CreateOutcome::KeyHeld { id: other.id, status: other.status })
    }
}

type ConflictRow = (
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

impl From<ConflictRow> for Conflict {
    fn from(row: ConflictRow) -> Self {
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

/// Rows to insert. Columns not needed by any of the jobs keep their defaults.
fn rows(jobs: &[job::Model]) -> Vec<ActiveModel> {
    let needs = |is_set: fn(&job::Model) -> bool| jobs.iter().any(is_set);
    let payload = needs(|job| job.payload.is_some());
    let key = needs(|job| !job.concurrency_key.is_empty());
    let deadline = needs(|job| job.deadline_at.is_some());
    let policy = needs(|job| job.retry_policy.is_some());
    let unique = needs(|job| job.unique_key.is_some());
    let request = needs(|job| job.request_id.is_some());
    let schedule = needs(|job| job.schedule_id.is_some());
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
