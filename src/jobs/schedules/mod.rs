//! Schedules: jobs that are made at set times.

mod check;
mod cron;
mod revise;
mod service;
mod ticker;

pub use service::JobSchedules;
pub(super) use ticker::Ticker;

use chrono::{DateTime, Utc};

use super::types::Types;
use crate::{
    entity::{job, job_schedule},
    rpc::time,
};

/// A job of a schedule, for a tick or for none.
fn job(
    schedule: &job_schedule::Model,
    tick_at: Option<DateTime<Utc>>,
    types: &Types,
    now: DateTime<Utc>,
) -> job::Model {
    let defaults = types.of(&schedule.job_type);
    job::Model {
        queue_name: Some(schedule.queue_name.clone()),
        priority: schedule.priority.unwrap_or(defaults.priority),
        max_attempts: schedule.max_attempts.unwrap_or(defaults.max_attempts),
        payload: schedule.payload.clone(),
        scheduled_at: Some(tick_at.unwrap_or(now).min(now)),
        max_rescues: defaults.max_rescues,
        timeout_ms: defaults.timeout.map(time::millis),
        // One that is made late gets as much time as any other.
        deadline_at: defaults.deadline.map(|deadline| now + deadline),
        dead_letter: defaults.dead_letter,
        schedule_id: Some(schedule.id),
        tick_at,
        ..job::Model::queued(schedule.job_type.clone(), now)
    }
}
