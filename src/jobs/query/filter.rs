//! Which jobs a filter lets pass.

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

/// How many values a list of a filter may have.
const MOST: usize = 1_000;

/// The priorities that there are.
const PRIORITIES: RangeInclusive<i32> = 0..=4;

/// How long an attempt may be said to take, in microseconds: 1,000 years, beyond which no times are kept.
const LONGEST: i64 = 31_557_600_000_000_000;

/// The lists and texts of a filter, checked.
#[derive(Debug)]
pub(crate) struct Lists {
    pub statuses: Vec<JobStatus>,
    pub job_types: Vec<String>,
    pub queue_names: Vec<String>,
    pub priorities: Vec<i32>,
    pub ids: Vec<Uuid>,
    /// Empty for any.
    pub worker_id: String,
    pub concurrency_keys: Vec<String>,
    pub schedule_id: Option<Uuid>,
    pub error_codes: Vec<String>,
}

impl pb::JobFilter {
    /// Returns true if an index serves the filter, in the order in which jobs were created: some by their ids, or all.
    pub(crate) fn has_index(&self) -> bool {
        let all = Self {
            created_at: self.created_at,
            ..Self::default()
        };
        !self.ids.is_empty() || *self == all
    }

    /// What must be true of a job; what depends on the time is judged at `now`. Empty
    /// (`Condition::is_empty`) if the filter lets all of them pass.
    pub(crate) fn condition(&self, backend: DbBackend, now: DateTime<Utc>) -> Result<Condition> {
        let lists = self.lists()?;
        let mut condition = Condition::all()
            .add_option((!lists.statuses.is_empty()).then(|| in_status(&lists.statuses)))
            .add_option(one_of(Column::JobType, lists.job_types))
            .add_option(one_of(Column::QueueName, lists.queue_names))
            .add_option(one_of(Column::Priority, lists.priorities))
            .add_option(one_of(Column::Id, lists.ids))
            .add_option(one_of(Column::ConcurrencyKey, lists.concurrency_keys))
            .add_option(lists.schedule_id.map(|id| Column::ScheduleId.eq(id)))
            .add_option(one_of(Column::ErrorCode, lists.error_codes));
        if !lists.worker_id.is_empty() {
            condition = condition.add(Column::WorkerId.eq(lists.worker_id));
        }
        for (field, column, range) in [
            ("filter.created_at", Column::CreatedAt, self.created_at),
            (
                "filter.completed_at",
                Column::CompletedAt,
                self.completed_at,
            ),
            (
                "filter.scheduled_at",
                Column::ScheduledAt,
                self.scheduled_at,
            ),
        ] {
            let (start, end) = time::bounds(field, range)?;
            condition = condition
                .add_option(start.map(|start| column.gte(start)))
                .add_option(end.map(|end| column.lt(end)));
        }
        for (column, wanted) in [
            (Column::ErrorMessage, self.has_error),
            (Column::DeadAt, self.dead),
            (Column::CancelRequestedAt, self.cancel_requested),
        ] {
            condition = condition.add_option(wanted.map(|is_set| {
                if is_set {
                    column.is_not_null()
                } else {
                    column.is_null()
                }
            }));
        }
        let (least, most) = self.durations()?;
        // Whole numbers: there is nothing to escape.
        let took = |bound: String| Expr::cust(format!("{} {bound}", run_micros(backend, now)));
        Ok(condition
            .add_option(least.map(|least| took(format!(">= {least}"))))
            .add_option(most.map(|most| took(format!("<= {most}")))))
    }

    /// Checks the lists and texts.
    pub(crate) fn lists(&self) -> Result<Lists> {
        let keys = &self.concurrency_keys;
        for (at, priority) in self.priorities.iter().enumerate() {
            check::within(&format!("filter.priorities[{at}]"), *priority, PRIORITIES)?;
        }
        if self.priorities.len() > MOST {
            let problem = format!("must have at most {MOST} entries");
            return Err(Error::invalid("filter.priorities", problem));
        }
        Ok(Lists {
            statuses: JobStatus::all_from_proto("filter.statuses", &self.statuses)?,
            job_types: check::texts("filter.job_types", &self.job_types, MOST, &(1..=50))?,
            queue_names: check::texts("filter.queue_names", &self.queue_names, MOST, &(1..=100))?,
            priorities: self.priorities.clone(),
            ids: check::uuids("filter.ids", &self.ids)?,
            worker_id: check::text("filter.worker_id", &self.worker_id, 0..=100)?,
            concurrency_keys: check::texts("filter.concurrency_keys", keys, MOST, &(1..=200))?,
            schedule_id: match self.schedule_id.as_str() {
                "" => None,
                id => Some(check::uuid("filter.schedule_id", id)?),
            },
            error_codes: check::texts("filter.error_codes", &self.error_codes, MOST, &(1..=100))?,
        })
    }

    /// How long the last attempt took, at least and at most, in microseconds.
    fn durations(&self) -> Result<(Option<i64>, Option<i64>)> {
        let read = |field, duration: Option<Duration>| {
            duration.map(|duration| micros(field, duration)).transpose()
        };
        let least = read("filter.min_duration", self.min_duration)?;
        let most = read("filter.max_duration", self.max_duration)?;
        if least.zip(most).is_some_and(|(least, most)| most < least) {
            let problem = "must not be shorter than `min_duration`";
            return Err(Error::invalid("filter.max_duration", problem));
        }
        Ok((least, most))
    }
}

fn one_of<V: Into<sea_orm::Value>>(column: Column, values: Vec<V>) -> Option<SimpleExpr> {
    (!values.is_empty()).then(|| column.is_in(values))
}

/// Whether a job is in one of these statuses, which stand in the statement so that the database sees which of its
/// partial indexes it can use.
pub(crate) fn in_status(statuses: &[JobStatus]) -> SimpleExpr {
    let operator = if statuses.len() == 1 { "=" } else { "IN" };
    Expr::cust(format!("jobs.status {operator} ({})", labels(statuses)))
}

/// Whether a job is in none of these statuses, said so that no index on the status is used: most jobs are finished,
/// and what else is asked of these is more to the point.
pub(crate) fn is_not(statuses: &[JobStatus]) -> SimpleExpr {
    Expr::cust(format!("jobs.status NOT IN ({})", labels(statuses)))
}

fn labels(statuses: &[JobStatus]) -> String {
    let labels = statuses
        .iter()
        .map(|status| format!("'{}'", status.as_str()));
    labels.collect::<Vec<_>>().join(", ")
}

/// How long the last attempt of a job took, in microseconds; that of a running one up to `now`. NULL
/// before the first one.
pub(crate) fn run_micros(backend: DbBackend, now: DateTime<Utc>) -> String {
    let micros = |time| row::micros(time, backend);
    // A job that is cancelled while it is queued, or fails then, has not run until that moment.
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

/// A length of time in microseconds, without what is less than one.
fn micros(field: &str, duration: Duration) -> Result<i64> {
    let whole = (duration.seconds >= 0).then(|| duration.seconds.saturating_mul(1_000_000));
    let nanos = (0..1_000_000_000)
        .contains(&duration.nanos)
        .then_some(duration.nanos);
    let length = whole
        .zip(nanos)
        .map(|(whole, nanos)| whole.saturating_add((nanos / 1_000).into()));
    let problem = "must be a length of time, at least 0 s";
    let length = length.ok_or_else(|| Error::invalid(field, problem))?;
    Ok(length.min(LONGEST))
}
