//! How many jobs there are, and how long they wait and run, worked out by the database, all of one moment.

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait, Condition, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect, Select,
};

use super::{
    counts::Counts,
    filter::in_status,
    percentiles::{Took, took},
};
use crate::{
    db::{Db, row},
    entity::{
        self,
        job::{Column, Entity, JobStatus},
    },
    error::Result,
    pb,
    rpc::time,
};

/// Over which time is told what was finished, unless the client says otherwise.
const WINDOW: Duration = Duration::from_hours(1);

/// Over which time it may be told.
const WINDOWS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(31 * 24);

/// What jobs of a type took that were finished in the window. What no job has is absent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TypeStats {
    pub job_type: String,
    /// How many were finished.
    pub jobs: i64,
    /// How long they could have run and did not before their last attempt: half of them no longer than this,
    pub wait_p50: Option<prost_types::Duration>,
    /// and 95 of 100 no longer than this.
    pub wait_p95: Option<prost_types::Duration>,
    /// How long their last attempt took: half of them no longer than this,
    pub run_p50: Option<prost_types::Duration>,
    /// and 95 of 100 no longer than this.
    pub run_p95: Option<prost_types::Duration>,
}

/// What is told of a queue.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct QueueStats {
    /// How many jobs wait that may run.
    pub depth: i64,
    /// How many wait that may run later.
    pub scheduled: i64,
    /// How many run.
    pub running: i64,
    /// How long the job that has waited longest could have run and did not. `None` if none waits.
    pub oldest_age: Option<prost_types::Duration>,
    /// How many were finished per second of the window.
    pub finished_per_second: f64,
    /// What jobs took that were finished in the window, by type.
    pub types: Vec<TypeStats>,
}

/// Reads over which time something is told.
pub(crate) fn window(window: Option<prost_types::Duration>) -> Result<Duration> {
    let Some(window) = window else {
        return Ok(WINDOW);
    };
    time::duration("window", window, &WINDOWS)
}

/// What a request asks for.
pub(crate) async fn stats(
    db: &Db,
    request: pb::GetJobStatsRequest,
) -> Result<pb::GetJobStatsResponse> {
    let now = entity::now();
    let window = window(request.window)?;
    let filter = request.filter.unwrap_or_default();
    let condition = filter.condition(db.backend(), now)?;
    let scan = db.scan().await?;
    let tx = scan.snapshot().await?;
    let counts = Counts::of(&tx, condition.clone()).await?;
    let dead = Column::DeadAt.is_not_null();
    let dead: Option<i64> = jobs(&condition)
        .filter(dead)
        .expr(row::count())
        .into_tuple()
        .one(&tx)
        .await?;
    let oldest: Option<Option<DateTime<Utc>>> = jobs(&condition)
        .filter(in_status(&[JobStatus::Queued]))
        .column_as(Column::ScheduledAt.min(), "oldest")
        .into_tuple()
        .one(&tx)
        .await?;
    let took = took(&tx, condition, (start(now, window), now), false).await?;
    tx.commit().await?;
    Ok(pb::GetJobStatsResponse {
        total: counts.total(),
        by_status: counts.by_status(),
        dead: dead.unwrap_or_default(),
        oldest_queued_age: oldest.flatten().and_then(|oldest| age(oldest, now)),
        average_run: average_run(&took),
        finished_per_second: per_second(took.iter().map(|took| took.finished).sum(), window),
        by_type: by_type(&counts, took),
    })
}

/// What there is to tell of a queue, or of all that have jobs, by name. `window` is one of [`window`].
pub(crate) async fn of_queue(
    db: &Db,
    queue: Option<&str>,
    window: Duration,
    now: DateTime<Utc>,
) -> Result<BTreeMap<String, QueueStats>> {
    let condition = Condition::all().add(queue.map_or_else(
        || Column::QueueName.is_not_null(),
        |queue| Column::QueueName.eq(queue),
    ));
    let mut queues: BTreeMap<String, QueueStats> = BTreeMap::new();
    queues.extend(queue.map(|queue| (queue.to_string(), QueueStats::default())));
    let scan = db.scan().await?;
    let tx = scan.snapshot().await?;

    let waiting = || jobs(&condition).filter(in_status(&[JobStatus::Queued]));
    let may_run = Column::ScheduledAt.lte(now);
    let due: Vec<(String, i64, DateTime<Utc>)> = waiting()
        .filter(may_run)
        .column(Column::QueueName)
        .expr_as(row::count(), "jobs")
        .column_as(Column::ScheduledAt.min(), "oldest")
        .group_by(Column::QueueName)
        .into_tuple()
        .all(&tx)
        .await?;
    for (queue, jobs, oldest) in due {
        let queue = queues.entry(queue).or_default();
        (queue.depth, queue.oldest_age) = (jobs, age(oldest, now));
    }
    let later = Condition::any()
        .add(Column::ScheduledAt.gt(now))
        .add(Column::ScheduledAt.is_null());
    for (queue, jobs) in by_queue(&tx, waiting().filter(later)).await? {
        queues.entry(queue).or_default().scheduled = jobs;
    }
    let running = jobs(&condition).filter(in_status(&[JobStatus::Running]));
    for (queue, jobs) in by_queue(&tx, running).await? {
        queues.entry(queue).or_default().running = jobs;
    }
    let took = took(&tx, condition, (start(now, window), now), true).await?;
    tx.commit().await?;

    for took in took {
        let queue = queues.entry(took.queue_name.clone()).or_default();
        queue.finished_per_second += per_second(took.finished, window);
        queue.types.push(took.into());
    }
    for queue in queues.values_mut() {
        queue
            .types
            .sort_unstable_by(|a, b| a.job_type.cmp(&b.job_type));
    }
    Ok(queues)
}

fn jobs(condition: &Condition) -> Select<Entity> {
    Entity::find().filter(condition.clone()).select_only()
}

async fn by_queue(tx: &DatabaseTransaction, jobs: Select<Entity>) -> Result<Vec<(String, i64)>> {
    let jobs = jobs
        .column(Column::QueueName)
        .expr_as(row::count(), "jobs")
        .group_by(Column::QueueName);
    Ok(jobs.into_tuple().all(tx).await?)
}

/// When the window began.
fn start(now: DateTime<Utc>, window: Duration) -> DateTime<Utc> {
    let window = TimeDelta::from_std(window).unwrap_or(TimeDelta::MAX);
    now.checked_sub_signed(window)
        .unwrap_or(DateTime::UNIX_EPOCH)
}

/// How long a job could have run by now. `None` if it may not run yet.
fn age(scheduled_at: DateTime<Utc>, now: DateTime<Utc>) -> Option<prost_types::Duration> {
    (scheduled_at <= now).then(|| time::span((now - scheduled_at).num_milliseconds()))
}

#[expect(clippy::cast_precision_loss, reason = "a rate has no more digits")]
fn per_second(finished: i64, window: Duration) -> f64 {
    finished as f64 / window.as_secs_f64()
}

/// How long completed jobs ran on average.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a mean has no more digits"
)]
fn average_run(took: &[Took]) -> Option<prost_types::Duration> {
    let completed: i64 = took.iter().map(|took| took.completed).sum();
    let all = took
        .iter()
        .filter_map(|took| Some(took.completed_mean? * took.completed as f64));
    let all: f64 = all.sum();
    (completed > 0).then(|| time::span_of_micros((all / completed as f64).round() as i64))
}

fn by_type(counts: &Counts, took: Vec<Took>) -> Vec<pb::JobTypeStats> {
    let took = took
        .into_iter()
        .map(|took| (took.job_type.clone(), took.into()));
    let mut took: HashMap<String, TypeStats> = took.collect();
    let stats = |(job_type, by_status): (&str, Vec<pb::JobStatusCount>)| {
        let finished = took.remove(job_type);
        let of = |length: fn(&TypeStats) -> Option<_>| finished.as_ref().and_then(length);
        pb::JobTypeStats {
            job_type: job_type.to_string(),
            by_status,
            wait_p50: of(|of| of.wait_p50),
            wait_p95: of(|of| of.wait_p95),
            run_p50: of(|of| of.run_p50),
            run_p95: of(|of| of.run_p95),
            finished: finished.map_or(0, |of| of.jobs),
        }
    };
    counts.by_type().into_iter().map(stats).collect()
}

impl From<Took> for TypeStats {
    fn from(took: Took) -> Self {
        let length = |micros: Option<i64>| micros.map(|micros| time::span_of_micros(micros.max(0)));
        Self {
            job_type: took.job_type,
            jobs: took.finished,
            wait_p50: length(took.wait_p50),
            wait_p95: length(took.wait_p95),
            run_p50: length(took.run_p50),
            run_p95: length(took.run_p95),
        }
    }
}
