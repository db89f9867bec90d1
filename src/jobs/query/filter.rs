//! SQL conditions of job filters.

use std::ops::RangeInclusive;

use chrono::{DateTime, Utc};
use prost_types::Duration;
use sea_orm::{
    ColumnTrait, Condition, DbBackend,
    sea_query::{Expr, SimpleExpr},
};
use uuid::Uuid;

use crate::{
    db::row,
    entity::job::{Column, JobStatus},
    error::{Error, Result},
    pb,
    rpc::{check, enums::FromProto, time},
};

/// Maximum number of values in a list of a filter.
const MAX_LIST_VALUES: usize = 1_000;

/// Range of priorities.
const PRIORITY_RANGE: RangeInclusive<i32> = 0..=4;

/// Upper bound of a duration, in microseconds: 1,000 years, the range of stored times.
const MAX_DURATION_MICROS: i64 = 31_557_600_000_000_000;

/// Validated lists and texts of a filter.
#[derive(Debug)]
pub(crate) struct FilterValues {
    pub statuses: Vec<JobStatus>,
    pub job_types: Vec<String>,
    pub queue_names: Vec<String>,
    pub priorities: Vec<i32>,
    pub ids: Vec<Uuid>,
    /// Empty for any worker.
    pub worker_id: String,
    pub concurrency_keys: Vec<String>,
    pub schedule_id: Option<Uuid>,
    pub error_codes: Vec<String>,
}

impl pb::JobFilter {
    /// Returns true if an index serves the filter in creation order: a filter by ids, or by creation time only.
    pub(crate) fn has_index(&self) -> bool {
        let by_creation = Self { created_at: self.created_at, ..Self::default() };
        !self.ids.is_empty() || *self == by_creation
    }

    /// Condition matching the filter. Running times of running jobs are taken up to `now`. The condition is empty
    /// (`Condition::is_empty`) if the filter matches every job.
    pub(crate) fn condition(&self, backend: DbBackend, now: DateTime<Utc>) -> Result<Condition> {
        let values = self.values()?;
        let mut condition = Condition::all()
            .add_option((!values.statuses.is_empty()).then(|| in_status(&values.statuses)))
            .add_option(one_of(Column::JobType, values.job_types))
            .add_option(one_of(Column::QueueName, values.queue_names))
            .add_option(one_of(Column::Priority, values.priorities))
            .add_option(one_of(Column::Id, values.ids))
            .add_option(one_of(Column::ConcurrencyKey, values.concurrency_keys))
            .add_option(values.schedule_id.map(|id| Column::ScheduleId.eq(id)))
            .add_option(one_of(Column::ErrorCode, values.error_codes));
        if !values.worker_id.is_empty() {
            condition = condition.add(Column::WorkerId.eq(values.worker_id));
        }
        for (field, column, range) in [
            ("filter.created_at", Column::CreatedAt, self.created_at),
            ("filter.completed_at", Column::CompletedAt, self.completed_at),
            ("filter.scheduled_at", Column::ScheduledAt, self.scheduled_at),
        ] {
            let (start, end) = time::bounds(field, range)?;
            condition =
                condition.add_option(start.map(|start| column.gte(start))).add_option(end.map(|end| column.lt(end)));
        }
        for (column, presence) in [
            (Column::ErrorMessage, self.has_error),
            (Column::DeadAt, self.dead),
            (Column::CancelRequestedAt, self.cancel_requested),
        ] {
            condition = condition
                .add_option(presence.map(|is_set| if is_set { column.is_not_null() } else { column.is_null() }));
        }
        let (min, max) = self.duration_bounds()?;
        // Integers need no escaping.
        let duration = |bound: String| Expr::cust(format!("{} {bound}", run_micros(backend, now)));
        Ok(condition
            .add_option(min.map(|min| duration(format!(">= {min}"))))
            .add_option(max.map(|max| duration(format!("<= {max}")))))
    }

    /// Validates the lists and texts of the filter.
    pub(crate) fn values(&self) -> Result<FilterValues> {
        let keys = &self.concurrency_keys;
        for (index, priority) in self.priorities.iter().enumerate() {
            check::within(&format!("filter.priorities[{index}]"), *priority, PRIORITY_RANGE)?;
        }
        if self.priorities.len() > MAX_LIST_VALUES {
            let problem = format!("must have at most {MAX_LIST_VALUES} entries");
            return Err(Error::invalid("filter.priorities", problem));
        }
        Ok(FilterValues {
            statuses: JobStatus::all_from_proto("filter.statuses", &self.statuses)?,
            job_types: check::texts("filter.job_types", &self.job_types, MAX_LIST_VALUES, &(1..=50))?,
            queue_names: check::texts("filter.queue_names", &self.queue_names, MAX_LIST_VALUES, &(1..=100))?,
            priorities: self.priorities.clone(),
            ids: check::uuids("filter.ids", &self.ids)?,
            worker_id: check::text("filter.worker_id", &self.worker_id, 0..=100)?,
            concurrency_keys: check::texts("filter.concurrency_keys", keys, MAX_LIST_VALUES, &(1..=200))?,
            schedule_id: match self.schedule_id.as_str() {
                "" => None,
                id => Some(check::uuid("filter.schedule_id", id)?),
            },
            error_codes: check::texts("filter.error_codes", &self.error_codes, MAX_LIST_VALUES, &(1..=100))?,
        })
    }

    /// Bounds of the duration of the last attempt, in microseconds.
    fn duration_bounds(&self) -> Result<(Option<i64>, Option<i64>)> {
        let bound = |field, duration: Option<Duration>| duration.map(|duration| micros(field, duration)).transpose();
        let min = bound("filter.min_duration", self.min_duration)?;
        let max = bound("filter.max_duration", self.max_duration)?;
        if min.zip(max).is_some_and(|(min, max)| max < min) {
            let problem = "must not be shorter than `min_duration`";
            return Err(Error::invalid("filter.max_duration", problem));
        }
        Ok((min, max))
    }
}

fn one_of<V: Into<sea_orm::Value>>(column: Column, values: Vec<V>) -> Option<SimpleExpr> {
    (!values.is_empty()).then(|| column.is_in(values))
}

/// Condition on the status of a job. Statuses are literals, so the database can choose a partial index.
pub(crate) fn in_status(statuses: &[JobStatus]) -> SimpleExpr {
    let operator = if statuses.len() == 1 { "=" } else { "IN" };
    Expr::cust(format!("jobs.status {operator} ({})", status_labels(statuses)))
}

/// Condition excluding statuses, phrased to avoid an index on the status: most jobs are finished, and other
/// conditions are more selective.
pub(crate) fn not_in_status(statuses: &[JobStatus]) -> SimpleExpr {
    Expr::cust(format!("jobs.status NOT IN ({})", status_labels(statuses)))
}

fn status_labels(statuses: &[JobStatus]) -> String {
    let quoted = statuses.iter().map(|status| format!("'{}'", status.as_str()));
    quoted.collect::<Vec<_>>().join(", ")
}

/// SQL expression for the duration of the last attempt in microseconds, up to `now` for a running job. NULL before
/// the first attempt.
pub(crate) fn run_micros(backend: DbBackend, now: DateTime<Utc>) -> String {
    let micros = |time| row::micros(time, backend);
    // A job cancelled or failed while queued has not run until the end time of the job.
    format!(
        "(CASE jobs.status WHEN 'completed' THEN {completed_at} WHEN 'running' THEN {now} \
        ELSE (SELECT {ended_at} FROM job_attempts AS a WHERE a.job_id = jobs.id \
        ORDER BY a.attempt_number DESC LIMIT 1) END - {started_at})",
        completed_at = micros("jobs.completed_at"),
        now = now.timestamp_micros(),
        ended_at = micros("a.ended_at"),
        started_at = micros("jobs.started_at"),
    )
}

/// Duration in whole microseconds, rounded down.
fn micros(field: &str, duration: Duration) -> Result<i64> {
    let whole = (duration.seconds >= 0).then(|| duration.seconds.saturating_mul(1_000_000));
    let nanos = (0..1_000_000_000).contains(&duration.nanos).then_some(duration.nanos);
    let length = whole.zip(nanos).map(|(whole, nanos)| whole.saturating_add((nanos / 1_000).into()));
    let problem = "must be a valid duration, at least 0 s";
    let length = length.ok_or_else(|| Error::invalid(field, problem))?;
    Ok(length.min(MAX_DURATION_MICROS))
}
