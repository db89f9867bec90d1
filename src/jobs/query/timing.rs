//! Waiting, running and remaining times of a job.

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    entity::{
        job::{self, JobStatus},
        job_attempt,
    },
    pb,
    rpc::time,
};

/// Times of a job with its last attempt.
pub(crate) fn job_timing(job: &job::Model, last: Option<&job_attempt::Model>, now: DateTime<Utc>) -> pb::JobTiming {
    let remaining = remaining_time(job, now);
    let completion = remaining.and_then(|remaining| now.checked_add_signed(remaining));
    // Protobuf timestamps end with the year 9999.
    let valid_completion = completion.and_then(|time| time::from_micros(time.timestamp_micros()));
    pb::JobTiming {
        wait: waiting_time(job, now).map(duration_to_proto),
        run: running_time(job, last, now).map(duration_to_proto),
        remaining: valid_completion.and(remaining).map(duration_to_proto),
        estimated_completed_at: valid_completion.map(time::to_proto),
    }
}

fn waiting_time(job: &job::Model, now: DateTime<Utc>) -> Option<TimeDelta> {
    let scheduled_at = job.scheduled_at?;
    if job.status == JobStatus::Queued {
        return (scheduled_at <= now).then(|| now - scheduled_at);
    }
    // A job without its next attempt is scheduled later than the start of its last attempt.
    let started_at = job.started_at?;
    (scheduled_at <= started_at).then(|| started_at - scheduled_at)
}

fn running_time(job: &job::Model, last: Option<&job_attempt::Model>, now: DateTime<Utc>) -> Option<TimeDelta> {
    let started_at = job.started_at?;
    let ended_at = match job.status {
        JobStatus::Running => now,
        JobStatus::Completed => job.completed_at?,
        // A job cancelled or failed while queued has not run until the end time of the job.
        JobStatus::Queued | JobStatus::Failed | JobStatus::Cancelled => last?.ended_at?,
    };
    Some(ended_at - started_at)
}

/// Remaining time of the current attempt, extrapolated from its progress.
fn remaining_time(job: &job::Model, now: DateTime<Utc>) -> Option<TimeDelta> {
    let (started_at, reported_at) = (job.started_at?, job.progress_at?);
    // Progress reported before the start belongs to an earlier attempt.
    if job.status != JobStatus::Running || reported_at <= started_at {
        return None;
    }
    // Without progress the quotient is infinite, and the conversion fails.
    let seconds = (reported_at - started_at).as_seconds_f64() / completed_fraction(job).min(1.0);
    let total = std::time::Duration::try_from_secs_f64(seconds).ok()?;
    let total = TimeDelta::from_std(total).ok()?;
    Some((total - (now - started_at)).max(TimeDelta::zero()))
}

/// Completed fraction in [0, 1]. Counted items are more exact than a matching percentage; a deviating percentage was
/// reported later.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn completed_fraction(job: &job::Model) -> f64 {
    let percents = f64::from(job.progress_percent);
    let items = job.items_processed.zip(job.items_total);
    let counted = items.filter(|(_, total)| *total > 0);
    let by_items = counted.map(|(processed, total)| 100.0 * processed as f64 / total as f64);
    let exact = by_items.filter(|by_items| (by_items - percents).abs() < 1.0);
    exact.unwrap_or(percents) / 100.0
}

fn duration_to_proto(length: TimeDelta) -> prost_types::Duration {
    // Clocks may be set back, and the clocks of processes differ.
    time::duration_from_millis(length.num_milliseconds().max(0))
}
