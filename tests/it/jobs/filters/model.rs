//! Which jobs a filter lets pass, and in which order, worked out another way: from the rows, one by one.

use std::cmp::Ordering;

use chrono::{DateTime, TimeDelta, Utc};
use fastrand::Rng;
use prost_types::Duration;
use uuid::Uuid;
use watchpost::{
    entity::{
        job::{self, JobStatus},
        job_attempt::{self, AttemptOutcome},
    },
    pb::{self, JobOrder},
};

use crate::{
    jobs::rows::{attempt, now, queued},
    support::calls::strings,
};

pub const STATUSES: [JobStatus; 5] =
    [JobStatus::Queued, JobStatus::Running, JobStatus::Completed, JobStatus::Failed, JobStatus::Cancelled];

pub const ORDERS: [JobOrder; 14] = [
    JobOrder::Unspecified,
    JobOrder::CreatedAt,
    JobOrder::CreatedAtDesc,
    JobOrder::StartedAt,
    JobOrder::StartedAtDesc,
    JobOrder::CompletedAt,
    JobOrder::CompletedAtDesc,
    JobOrder::Progress,
    JobOrder::ProgressDesc,
    JobOrder::JobType,
    JobOrder::JobTypeDesc,
    JobOrder::Status,
    JobOrder::StatusDesc,
    JobOrder::Priority,
];

/// A job, and when its last attempt ended.
#[derive(Clone)]
pub struct Row {
    pub job: job::Model,
    pub ended_at: Option<DateTime<Utc>>,
}

/// A minute to which times are, so that many are equal.
pub fn coarse(rng: &mut Rng) -> DateTime<Utc> {
    let start: DateTime<Utc> = "2026-03-01T12:00:00Z".parse().unwrap();
    // With and without milliseconds and microseconds.
    let part = [0, 0, 500, 500_001][rng.usize(..4)];
    start + TimeDelta::seconds(rng.i64(0..6)) + TimeDelta::microseconds(part)
}

pub fn random(rng: &mut Rng, schedules: &[Uuid]) -> (Row, Vec<job_attempt::Model>) {
    let status = STATUSES[rng.usize(..5)];
    let created_at = coarse(rng);
    let started_at = Some(created_at + TimeDelta::seconds(rng.i64(0..5)));
    let has_started = match status {
        JobStatus::Running | JobStatus::Completed => true,
        JobStatus::Queued | JobStatus::Failed | JobStatus::Cancelled => rng.bool(),
    };
    let started_at = started_at.filter(|_| has_started);
    let completed_at = started_at.unwrap_or(created_at) + TimeDelta::microseconds(rng.i64(0..6_000_000));
    let completed_at = status.is_finished().then_some(completed_at);
    let lease = (status == JobStatus::Running).then(Uuid::now_v7);
    let mut job = job::Model {
        status,
        // The server is to leave it as it is.
        lease_id: lease,
        lease_expires_at: lease.map(|_| now() + TimeDelta::hours(1)),
        created_at,
        started_at,
        completed_at,
        queue_name: rng.bool().then(|| ["default", "Slow", "a%b"][rng.usize(..3)].to_string()),
        priority: rng.i32(0..5),
        progress_percent: [0, 50, 100][rng.usize(..3)],
        current_step: rng.bool().then(|| ["Reading", "a_b"][rng.usize(..2)].to_string()),
        error_message: rng.bool().then(|| "No space left".to_string()),
        error_code: rng.bool().then(|| ["ENOSPC", "TIMEOUT"][rng.usize(..2)].to_string()),
        scheduled_at: rng.bool().then(|| coarse(rng)),
        concurrency_key: ["", "door", "Gate"][rng.usize(..3)].into(),
        dead_at: rng.bool().then(now).filter(|_| status == JobStatus::Failed),
        cancel_requested_at: rng.bool().then(now),
        worker_id: rng.bool().then(|| ["w-1", "W-2"][rng.usize(..2)].to_string()),
        schedule_id: rng.bool().then(|| schedules[rng.usize(..2)]),
        unique_key: rng.bool().then(|| "clip\\7".to_string()),
        ..queued(["export", "Backup", "ai_analysis", "Zoom", "äther"][rng.usize(..5)])
    };
    // Else the schedule would have made two for a time.
    job.tick_at = job.schedule_id.map(|_| now() + TimeDelta::microseconds(rng.i64(0..1_000_000_000)));
    let mut attempts = Vec::new();
    let mut ended_at = completed_at;
    if let Some(started_at) = started_at {
        let earlier = started_at - TimeDelta::seconds(100);
        attempts.push(attempt(job.id, 1, earlier, Some((started_at, AttemptOutcome::Failed))));
        let ended = match status {
            JobStatus::Running => None,
            JobStatus::Completed => completed_at,
            // While it waited, maybe.
            JobStatus::Queued | JobStatus::Failed | JobStatus::Cancelled => {
                Some(started_at + TimeDelta::milliseconds(rng.i64(0..3_000)))
            }
        };
        attempts.push(attempt(job.id, 2, started_at, ended.map(|at| (at, AttemptOutcome::Failed))));
        ended_at = ended;
    }
    (Row { job, ended_at }, attempts)
}

/// What the rows are sorted by, without those that come last.
pub fn compare(order: JobOrder, a: &job::Model, b: &job::Model) -> Ordering {
    fn last<T: Ord>(a: Option<T>, b: Option<T>, descending: bool) -> Ordering {
        match (a, b) {
            (Some(a), Some(b)) if descending => b.cmp(&a),
            (Some(a), Some(b)) => a.cmp(&b),
            (a, b) => a.is_none().cmp(&b.is_none()),
        }
    }
    let rank = |job: &job::Model| STATUSES.iter().position(|status| *status == job.status);
    let newest = (b.created_at, b.id).cmp(&(a.created_at, a.id));
    let by = match order {
        JobOrder::Unspecified | JobOrder::CreatedAtDesc => Ordering::Equal,
        JobOrder::CreatedAt => return newest.reverse(),
        JobOrder::StartedAt => last(a.started_at, b.started_at, false),
        JobOrder::StartedAtDesc => last(a.started_at, b.started_at, true),
        JobOrder::CompletedAt => last(a.completed_at, b.completed_at, false),
        JobOrder::CompletedAtDesc => last(a.completed_at, b.completed_at, true),
        JobOrder::Progress => a.progress_percent.cmp(&b.progress_percent),
        JobOrder::ProgressDesc => b.progress_percent.cmp(&a.progress_percent),
        JobOrder::JobType => a.job_type.cmp(&b.job_type),
        JobOrder::JobTypeDesc => b.job_type.cmp(&a.job_type),
        JobOrder::Status => rank(a).cmp(&rank(b)),
        JobOrder::StatusDesc => rank(b).cmp(&rank(a)),
        JobOrder::Priority => return a.priority.cmp(&b.priority).then(newest.reverse()),
    };
    by.then(newest)
}

pub fn micros(duration: Duration) -> i64 {
    duration.seconds * 1_000_000 + i64::from(duration.nanos / 1_000)
}

pub fn in_range(range: Option<pb::TimeRange>, time: Option<DateTime<Utc>>) -> bool {
    let Some(range) = range else { return true };
    let micros = |time: prost_types::Timestamp| time.seconds * 1_000_000 + i64::from(time.nanos / 1_000);
    let (start, end) = (range.start.map(micros), range.end.map(micros));
    if start.is_none() && end.is_none() {
        return true;
    }
    time.is_some_and(|time| {
        let time = time.timestamp_micros();
        start.is_none_or(|start| start <= time) && end.is_none_or(|end| time < end)
    })
}

pub fn lists<T: PartialEq>(wanted: &[T], value: Option<&T>) -> bool {
    wanted.is_empty() || value.is_some_and(|value| wanted.contains(value))
}

/// Whether a filter lets a job pass, by what the API says of it.
pub fn passes(filter: &pb::JobFilter, row: &Row) -> bool {
    let job = &row.job;
    let status = pb::JobStatus::from(job.status).into();
    let took = job.started_at.and_then(|started_at| {
        let ended_at = if job.status == JobStatus::Running { Some(now()) } else { row.ended_at };
        Some((ended_at? - started_at).num_microseconds().unwrap())
    });
    let is = |wanted: Option<bool>, is: bool| wanted.is_none_or(|wanted| wanted == is);
    lists(&filter.statuses, Some(&status))
        && lists(&filter.job_types, Some(&job.job_type))
        && lists(&filter.queue_names, job.queue_name.as_ref())
        && lists(&filter.priorities, Some(&job.priority))
        && lists(&filter.ids, Some(&job.id.to_string()))
        && lists(&filter.concurrency_keys, Some(&job.concurrency_key))
        && lists(&filter.error_codes, job.error_code.as_ref())
        && (filter.worker_id.is_empty() || job.worker_id.as_ref() == Some(&filter.worker_id))
        && (filter.schedule_id.is_empty()
            || job.schedule_id.map(|id| id.to_string()).as_ref() == Some(&filter.schedule_id))
        && in_range(filter.created_at, Some(job.created_at))
        && in_range(filter.completed_at, job.completed_at)
        && in_range(filter.scheduled_at, job.scheduled_at)
        && is(filter.has_error, job.error_message.is_some())
        && is(filter.dead, job.dead_at.is_some())
        && is(filter.cancel_requested, job.cancel_requested_at.is_some())
        && filter.min_duration.is_none_or(|least| took.is_some_and(|took| took >= micros(least)))
        && filter.max_duration.is_none_or(|most| took.is_some_and(|took| took <= micros(most)))
}

/// Whether a job holds a text, by what the API says of it.
pub fn holds(text: &str, job: &job::Model) -> bool {
    let text = text.to_ascii_lowercase();
    let texts = [
        Some(&job.job_type),
        job.queue_name.as_ref(),
        job.current_step.as_ref(),
        job.error_message.as_ref(),
        job.error_code.as_ref(),
        job.worker_id.as_ref(),
        job.unique_key.as_ref(),
        Some(&job.concurrency_key),
    ];
    let mut texts = texts.into_iter().flatten();
    job.id.to_string().starts_with(&text) || texts.any(|held| held.to_ascii_lowercase().contains(&text))
}

pub fn range(rng: &mut Rng) -> pb::TimeRange {
    let start: DateTime<Utc> = "2026-03-01T12:00:00Z".parse().unwrap();
    let from = start.timestamp() + rng.i64(0..5);
    let part = [0, 500_000, 500_001_000][rng.usize(..3)];
    let time = |seconds| prost_types::Timestamp { seconds, nanos: part };
    pb::TimeRange { start: rng.bool().then(|| time(from)), end: rng.bool().then(|| time(from + rng.i64(0..4))) }
}

/// A filter of one to three things.
pub fn filter(rng: &mut Rng, rows: &[Row], schedules: &[Uuid]) -> pb::JobFilter {
    let mut filter = pb::JobFilter::default();
    for _ in 0..rng.usize(1..4) {
        match rng.usize(..17) {
            0 => filter.statuses = (0..rng.usize(1..3)).map(|_| rng.i32(1..6)).collect(),
            1 => filter.job_types = strings(&["export", "Zoom"][..rng.usize(1..3)]),
            2 => filter.queue_names = strings(&["default", "a%b"][..rng.usize(1..3)]),
            3 => filter.priorities = vec![rng.i32(0..5), rng.i32(0..5)],
            4 => {
                filter.ids = (0..20).map(|_| rows[rng.usize(..rows.len())].job.id.to_string()).collect();
            }
            5 => filter.created_at = Some(range(rng)),
            6 => filter.completed_at = Some(range(rng)),
            7 => filter.scheduled_at = Some(range(rng)),
            8 => filter.has_error = Some(rng.bool()),
            9 => filter.dead = Some(rng.bool()),
            10 => filter.cancel_requested = Some(rng.bool()),
            11 => filter.worker_id = ["w-1", "W-2"][rng.usize(..2)].into(),
            12 => filter.concurrency_keys = strings(&["door", "Gate"][..rng.usize(1..3)]),
            13 => filter.schedule_id = schedules[rng.usize(..2)].to_string(),
            14 => filter.error_codes = strings(&["ENOSPC", "TIMEOUT"][..rng.usize(1..3)]),
            15 => {
                filter.min_duration = Some(Duration { seconds: 0, nanos: rng.i32(0..1_000_000_000) });
            }
            _ => {
                filter.max_duration = Some(Duration { seconds: rng.i64(1..3), nanos: rng.i32(0..1_000_000_000) });
            }
        }
    }
    filter
}
