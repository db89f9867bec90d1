//! Schedules: jobs that are made at set times.

mod check;
mod cron;
mod service;
mod ticker;

pub use service::JobSchedules;
pub(super) use ticker::Ticker;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::types::Types;
use crate::entity::{
    job::{self, JobStatus},
    job_schedule,
};

/// A job of a schedule, for a tick or for none.
fn job(
    schedule: &job_schedule::Model,
    tick_at: Option<DateTime<Utc>>,
    types: &Types,
    now: DateTime<Utc>,
) -> job::Model {
    let defaults = types.of(&schedule.job_type);
    let timeout = defaults.timeout;
    // One that is made late gets as much time as any other.
    let deadline_at = defaults.deadline.map(|deadline| now + deadline);
    job::Model {
        id: Uuid::now_v7(),
        job_type: schedule.job_type.clone(),
        status: JobStatus::Queued,
        queue_name: Some(schedule.queue_name.clone()),
        priority: schedule.priority.unwrap_or(defaults.priority),
        created_at: now,
        started_at: None,
        completed_at: None,
        progress_percent: 0,
        current_step: None,
        result: None,
        error_message: None,
        error_traceback: None,
        attempt_number: 1,
        max_attempts: schedule.max_attempts.unwrap_or(defaults.max_attempts),
        next_retry_at: None,
        payload: schedule.payload.clone(),
        scheduled_at: Some(tick_at.unwrap_or(now).min(now)),
        concurrency_key: String::new(),
        failures: 0,
        rescues: 0,
        max_rescues: defaults.max_rescues,
        timeout_ms: timeout.and_then(|timeout| i64::try_from(timeout.as_millis()).ok()),
        attempt_deadline_at: None,
        deadline_at,
        retry_policy: None,
        dead_letter: defaults.dead_letter,
        dead_at: None,
        lease_id: None,
        worker_id: None,
        lease_ms: None,
        lease_expires_at: None,
        heartbeat_at: None,
        cancel_requested_at: None,
        cancel_requested_by: None,
        cancel_reason: None,
        unique_key: None,
        unique_period: 0,
        unique_states: 0,
        request_id: None,
        request_hash: None,
        schedule_id: Some(schedule.id),
        tick_at,
        error_code: None,
        items_processed: None,
        items_total: None,
        progress_at: None,
        log_lines: 0,
        version_id: 1,
        transitioned_at: None,
    }
}
