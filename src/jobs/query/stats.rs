//! Statistics of jobs, computed by the database in one snapshot.

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ColumnTrait, Condition, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect, Select};

use super::{
    counts::Counts,
    filter::in_status,
    percentiles::{DurationPercentiles, duration_percentiles},
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

/// Default window for finished jobs.
const DEFAULT_WINDOW: Duration = Duration::from_hours(1);

/// Range of the window.
const WINDOW_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(31 * 24);

/// Times of the jobs of a type finished in the window. `None` if no job has a value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TypeStats {
    pub job_type: String,
    /// Number of finished jobs.
    pub jobs: i64,
    /// Median waiting time before the last attempt, from the scheduled time on.
    pub wait_p50: Option<prost_types::Duration>,
    /// 95th percentile of the waiting time.
    pub wait_p95: Option<prost_types::Duration>,
    /// Median duration of the last attempt.
    pub run_p50: Option<prost_types::Duration>,
    /// 95th percentile of the duration of the last attempt.
    pub run_p95: Option<prost_types::Duration>,
}

/// Statistics of a queue.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct QueueStats {
    /// Number of waiting jobs due now.
    pub depth: i64,
    /// Number of waiting jobs scheduled for later.
    pub scheduled: i64,
    /// Number of running jobs.
    pub running: i64,
    /// Waiting time of the longest due job. `None` if no job is due.
    pub oldest_age: Option<prost_types::Duration>,
    /// Finished jobs per second of the window.
    pub finished_per_second: f64,
    /// Times of the jobs finished in the window, by type.
    pub types: Vec<TypeStats>,
}

/// Validates the window of a request.
pub(crate) fn window(window: Option<prost_types::Duration>) -> Result<Duration> {
    let Some(window) = window else {
        return Ok(DEFAULT_WINDOW);
    };
    time::duration("window", window, &WINDOW_RANGE)
}

/// Computes the statistics of the matching jobs.
pub(crate) async fn job_stats(db: &Db, request: pb::GetJobStatsRequest) -> Result<pb::GetJobStatsResponse> {
    let now = entity::now();
    let window = window(request.window)?;
    let filter = request.filter.unwrap_or_default();
    let condition = filter.condition(db.backend(), now)?;
    let scan = db.scan().await?;
    let tx = scan.snapshot().await?;
    let counts = Counts::count(&tx, condition.clone()).await?;
    let dead = Column::DeadAt.is_not_null();
    let dead: Option<i64> = jobs(&condition).filter(dead).expr(row::count()).into_tuple().one(&tx).await?;
    let oldest: Option<Option<DateTime<Utc>>> = jobs(&condition)
        .filter(in_status(&[JobStatus::Queued]))
        .column_as(Column::ScheduledAt.min(), "oldest")
        .into_tuple()
        .one(&tx)
        .await?;
    let percentiles = duration_percentiles(&tx, condition, (window_start(now, window), now), false).await?;
    tx.commit().await?;
    Ok(pb::GetJobStatsResponse {
        total: counts.total(),
        by_status: counts.by_status(),
        dead: dead.unwrap_or_default(),
        oldest_queued_age: oldest.flatten().and_then(|oldest| age(oldest, now)),
        average_run: average_run(&percentiles),
        finished_per_second: per_second(percentiles.iter().map(|group| group.finished).sum(), window),
        by_type: by_type(&counts, percentiles),
    })
}

/// Computes the statistics of a queue, or of all queues with jobs, by name. `window` comes from [`window`].
pub(crate) async fn queue_stats(
    db: &Db,
    queue: Option<&str>,
    window: Duration,
    now: DateTime<Utc>,
) -> Result<BTreeMap<String, QueueStats>> {
    let condition = Condition::all()
        .add(queue.map_or_else(|| Column::QueueName.is_not_null(), |queue| Column::QueueName.eq(queue)));
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
    let later = Condition::any().add(Column::ScheduledAt.gt(now)).add(Column::ScheduledAt.is_null());
    for (queue, jobs) in by_queue(&tx, waiting().filter(later)).await? {
        queues.entry(queue).or_default().scheduled = jobs;
    }
    let running = jobs(&condition).filter(in_status(&[JobStatus::Running]));
    for (queue, jobs) in by_queue(&tx, running).await? {
        queues.entry(queue).or_default().running = jobs;
    }
    let percentiles = duration_percentiles(&tx, condition, (window_start(now, window), now), true).await?;
    tx.commit().await?;

    for group in percentiles {
        let queue = queues.entry(group.queue_name.clone()).or_default();
        queue.finished_per_second += per_second(group.finished, window);
        queue.types.push(group.into());
    }
    for queue in queues.values_mut() {
        queue.types.sort_unstable_by(|a, b| a.job_type.cmp(&b.job_type));
    }
    Ok(queues)
}

fn jobs(condition: &Condition) -> Select<Entity> {
    Entity::find().filter(condition.clone()).select_only()
}

async fn by_queue(tx: &DatabaseTransaction, jobs: Select<Entity>) -> Result<Vec<(String, i64)>> {
    let jobs = jobs.column(Column::QueueName).expr_as(row::count(), "jobs").group_by(Column::QueueName);
    Ok(jobs.into_tuple().all(tx).await?)
}

/// Start of the window.
fn window_start(now: DateTime<Utc>, window: Duration) -> DateTime<Utc> {
    let window = TimeDelta::from_std(window).unwrap_or(TimeDelta::MAX);
    now.checked_sub_signed(window).unwrap_or(DateTime::UNIX_EPOCH)
}

/// Age of a due job. `None` if the job is not due.
fn age(scheduled_at: DateTime<Utc>, now: DateTime<Utc>) -> Option<prost_types::Duration> {
    (scheduled_at <= now).then(|| time::duration_from_millis((now - scheduled_at).num_milliseconds()))
}

#[expect(clippy::cast_precision_loss, reason = "a rate has no more digits")]
fn per_second(finished: i64, window: Duration) -> f64 {
    finished as f64 / window.as_secs_f64()
}

/// Mean running time of the completed jobs.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a mean has no more digits")]
fn average_run(types: &[DurationPercentiles]) -> Option<prost_types::Duration> {
    let completed: i64 = types.iter().map(|group| group.completed).sum();
    let micros = types.iter().filter_map(|group| Some(group.completed_mean? * group.completed as f64));
    let total_micros: f64 = micros.sum();
    let mean_micros = total_micros / completed as f64;
    (completed > 0).then(|| time::duration_from_micros(mean_micros.round() as i64))
}

fn by_type(counts: &Counts, percentiles: Vec<DurationPercentiles>) -> Vec<pb::JobTypeStats> {
    let types = percentiles.into_iter().map(|group| (group.job_type.clone(), group.into()));
    let mut finished_by_type: HashMap<String, TypeStats> = types.collect();
    let stats = |(job_type, by_status): (&str, Vec<pb::JobStatusCount>)| {
        let finished = finished_by_type.remove(job_type);
        let value = |time: fn(&TypeStats) -> Option<_>| finished.as_ref().and_then(time);
        pb::JobTypeStats {
            job_type: job_type.to_string(),
            by_status,
            wait_p50: value(|stats| stats.wait_p50),
            wait_p95: value(|stats| stats.wait_p95),
            run_p50: value(|stats| stats.run_p50),
            run_p95: value(|stats| stats.run_p95),
            finished: finished.map_or(0, |stats| stats.jobs),
        }
    };
    counts.by_type().into_iter().map(stats).collect()
}

impl From<DurationPercentiles> for TypeStats {
    fn from(percentiles: DurationPercentiles) -> Self {
        let time = |micros: Option<i64>| micros.map(|micros| time::duration_from_micros(micros.max(0)));
        Self {
            job_type: percentiles.job_type,
            jobs: percentiles.finished,
            wait_p50: time(percentiles.wait_p50),
            wait_p95: time(percentiles.wait_p95),
            run_p50: time(percentiles.run_p50),
            run_p95: time(percentiles.run_p95),
        }
    }
}
