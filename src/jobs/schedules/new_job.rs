//! Jobs of schedules.

use chrono::{DateTime, Utc};

use crate::{
    entity::{job, job_schedule},
    jobs::types::Types,
    rpc::time,
};

/// Builds a job of a schedule: for a tick, or without a tick for a requested run.
pub(super) fn new_job(
    schedule: &job_schedule::Model,
    tick_at: Option<DateTime<Utc>>,
    types: &Types,
    now: DateTime<Utc>,
) -> job::Model {
    let defaults = types.defaults_of(&schedule.job_type);
    job::Model {
        queue_name: Some(schedule.queue_name.clone()),
        priority: schedule.priority.unwrap_or(defaults.priority),
        max_attempts: schedule.max_attempts.unwrap_or(defaults.max_attempts),
        payload: schedule.payload.clone(),
        scheduled_at: Some(tick_at.unwrap_or(now).min(now)),
        max_rescues: defaults.max_rescues,
        timeout_ms: defaults.timeout.map(time::millis),
        // A late job gets as much time as any other job.
        deadline_at: defaults.deadline.map(|deadline| now + deadline),
        dead_letter: defaults.dead_letter,
        schedule_id: Some(schedule.id),
        tick_at,
        ..job::Model::queued(schedule.job_type.clone(), now)
    }
}
