//! How long a job waited and ran, and how long it is likely to go on.

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    entity::{
        job::{self, JobStatus},
        job_attempt,
    },
    pb,
    rpc::time,
};

/// What there is to tell of a job, whose last attempt this is.
pub(crate) fn timing(
    job: &job::Model,
    last: Option<&job_attempt::Model>,
    now: DateTime<Utc>,
) -> pb::JobTiming {
    let estimate = estimate(job, now);
    let until = estimate.and_then(|left| now.checked_add_signed(left));
    // Beyond that the wire has no times.
    let until = until.and_then(|until| time::from_micros(until.timestamp_micros()));
    pb::JobTiming {
        wait: wait(job, now).map(length),
        run: run(job, last, now).map(length),
        remaining: until.and(estimate).map(length),
        estimated_completed_at: until.map(time::to_proto),
    }
}

fn wait(job: &job::Model, now: DateTime<Utc>) -> Option<TimeDelta> {
    let scheduled_at = job.scheduled_at?;
    if job.status == JobStatus::Queued {
        return (scheduled_at <= now).then(|| now - scheduled_at);
    }
    // Who did not come to its next attempt was scheduled for that after it had begun the last one.
    let started_at = job.started_at?;
    (scheduled_at <= started_at).then(|| started_at - scheduled_at)
}

fn run(
    job: &job::Model,
    last: Option<&job_attempt::Model>,
    now: DateTime<Utc>,
) -> Option<TimeDelta> {
    let started_at = job.started_at?;
    let ended_at = match job.status {
        JobStatus::Running => now,
        JobStatus::Completed => job.completed_at?,
        // A job that is cancelled while it is queued, or fails then, has not run until that moment.
        JobStatus::Queued | JobStatus::Failed | JobStatus::Cancelled => last?.ended_at?,
    };
    Some(ended_at - started_at)
}

/// How long the current attempt is likely to go on at the rate of its progress so far.
fn estimate(job: &job::Model, now: DateTime<Utc>) -> Option<TimeDelta> {
    let (started_at, told_at) = (job.started_at?, job.progress_at?);
    // What was told before it began is not its progress.
    if job.status != JobStatus::Running || told_at <= started_at {
        return None;
    }
    // Without progress this is endless, and no length of time.
    let seconds = (told_at - started_at).as_seconds_f64() / done(job).min(1.0);
    let whole = std::time::Duration::try_from_secs_f64(seconds).ok()?;
    let whole = TimeDelta::from_std(whole).ok()?;
    Some((whole - (now - started_at)).max(TimeDelta::zero()))
}

/// Which part of a job is done. The numbers of items say it more exactly, unless percents were told after them.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn done(job: &job::Model) -> f64 {
    let percents = f64::from(job.progress_percent);
    let items = job.items_processed.zip(job.items_total);
    let items = items.filter(|(_, all)| *all > 0);
    let by_items = items.map(|(done, all)| 100.0 * done as f64 / all as f64);
    let exact = by_items.filter(|by_items| (by_items - percents).abs() < 1.0);
    exact.unwrap_or(percents) / 100.0
}

fn length(length: TimeDelta) -> prost_types::Duration {
    // Clocks are set back, and those of processes differ.
    time::span(length.num_milliseconds().max(0))
}
