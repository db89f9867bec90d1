//! Conversions of job rows to protobuf messages.

use crate::{
    entity::{
        job::{self, JobStatus, RetryPolicy},
        job_attempt::{self, AttemptOutcome, JobAttemptStatus},
        job_log::{self, JobLogLevel},
        job_transition,
    },
    pb,
    rpc::{enums::proto_enum, json, time},
};

/// All job statuses, in the order of the protobuf enum.
pub(super) const STATUSES: [JobStatus; 5] =
    [JobStatus::Queued, JobStatus::Running, JobStatus::Completed, JobStatus::Failed, JobStatus::Cancelled];

proto_enum!(JobStatus, pb::JobStatus { Queued, Running, Completed, Failed, Cancelled });
proto_enum!(JobLogLevel, pb::JobLogLevel { Debug, Info, Warning, Error });
proto_enum!(JobAttemptStatus, pb::JobAttemptStatus { Started, Succeeded, Failed, Cancelled });
proto_enum!(
    AttemptOutcome,
    pb::JobAttemptOutcome { Succeeded, Failed, TimedOut, Rescued, Released, Snoozed, Cancelled }
);

/// Protobuf number of a status label. 0 for an unknown label, as another writer may have stored one.
pub(super) fn status_number(label: &str) -> i32 {
    let known = STATUSES.into_iter().find(|status| status.as_str() == label);
    known.map_or(0, |status| pb::JobStatus::from(status).into())
}

impl From<job::Model> for pb::Job {
    fn from(row: job::Model) -> Self {
        let holds = |status: &JobStatus| row.unique_states & status.bit() != 0;
        let unique_states = STATUSES.into_iter().filter(holds);
        Self {
            id: row.id.to_string(),
            job_type: row.job_type,
            status: pb::JobStatus::from(row.status).into(),
            queue_name: row.queue_name,
            priority: Some(row.priority),
            created_at: Some(time::to_proto(row.created_at)),
            started_at: row.started_at.map(time::to_proto),
            completed_at: row.completed_at.map(time::to_proto),
            progress_percent: row.progress_percent,
            current_step: row.current_step,
            result: row.result.and_then(json::to_proto),
            error_message: row.error_message,
            error_traceback: row.error_traceback,
            attempt_number: row.attempt_number,
            max_attempts: Some(row.max_attempts),
            next_retry_at: row.next_retry_at.map(time::to_proto),
            payload: row.payload.and_then(json::to_proto),
            scheduled_at: row.scheduled_at.map(time::to_proto),
            concurrency_key: row.concurrency_key,
            failures: row.failures,
            rescues: row.rescues,
            max_rescues: Some(row.max_rescues),
            timeout: row.timeout_ms.map(time::duration_from_millis),
            deadline_at: row.deadline_at.map(time::to_proto),
            retry_policy: row.retry_policy.map(Into::into),
            dead_letter: Some(row.dead_letter),
            dead_at: row.dead_at.map(time::to_proto),
            worker_id: row.worker_id,
            lease_expires_at: row.lease_expires_at.map(time::to_proto),
            heartbeat_at: row.heartbeat_at.map(time::to_proto),
            cancel_requested_at: row.cancel_requested_at.map(time::to_proto),
            cancel_requested_by: row.cancel_requested_by,
            cancel_reason: row.cancel_reason,
            unique_key: row.unique_key,
            unique_states: unique_states.map(|status| pb::JobStatus::from(status).into()).collect(),
            request_id: row.request_id,
            schedule_id: row.schedule_id.map(|id| id.to_string()),
            tick_at: row.tick_at.map(time::to_proto),
            error_code: row.error_code,
            items_processed: row.items_processed,
            items_total: row.items_total,
            progress_at: row.progress_at.map(time::to_proto),
            log_lines: row.log_lines,
            version_id: row.version_id,
            transitioned_at: row.transitioned_at.map(time::to_proto),
            attempts: Vec::new(),
            timing: None,
            deadline: None,
            unique: None,
        }
    }
}

/// Converts a job without payload, result and traceback, as lists and watches return jobs.
pub(super) fn light_job(mut row: job::Model) -> pb::Job {
    row.payload = None;
    row.result = None;
    row.error_traceback = None;
    row.into()
}

impl From<RetryPolicy> for pb::RetryPolicy {
    fn from(policy: RetryPolicy) -> Self {
        Self {
            initial_delay: Some(time::duration_from_millis(policy.initial_ms)),
            max_delay: Some(time::duration_from_millis(policy.max_ms)),
            multiplier: Some(policy.multiplier),
            jitter: Some(policy.jitter),
        }
    }
}

impl From<job_attempt::Model> for pb::JobAttempt {
    fn from(row: job_attempt::Model) -> Self {
        let outcome = row.outcome.map(pb::JobAttemptOutcome::from);
        Self {
            id: row.id.to_string(),
            job_id: row.job_id.to_string(),
            attempt_number: row.attempt_number,
            started_at: Some(time::to_proto(row.started_at)),
            ended_at: row.ended_at.map(time::to_proto),
            status: pb::JobAttemptStatus::from(row.status).into(),
            worker_id: row.worker_id,
            error_message: row.error_message,
            error_traceback: row.error_traceback,
            result: row.result.and_then(json::to_proto),
            outcome: outcome.unwrap_or_default().into(),
            error_code: row.error_code,
        }
    }
}

impl From<job_transition::Model> for pb::JobTransition {
    fn from(row: job_transition::Model) -> Self {
        let metadata = row.metadata_json.as_deref();
        let metadata = metadata.and_then(|text| serde_json::from_str(text).ok());
        Self {
            id: row.id.to_string(),
            job_id: row.job_id.to_string(),
            from_status: status_number(&row.from_status),
            to_status: status_number(&row.to_status),
            transitioned_at: Some(time::to_proto(row.transitioned_at)),
            triggered_by: row.triggered_by,
            metadata: metadata.and_then(json::to_proto),
            version_id: row.version_id,
            attempt_number: row.attempt_number,
            actor: row.actor,
            reason: row.reason,
        }
    }
}

impl From<job_log::Model> for pb::JobLog {
    fn from(row: job_log::Model) -> Self {
        Self {
            id: row.id.to_string(),
            job_id: row.job_id.to_string(),
            attempt_number: row.attempt_number,
            timestamp: Some(time::to_proto(row.timestamp)),
            level: pb::JobLogLevel::from(row.level).into(),
            message: row.message,
            context: row.context.and_then(json::to_proto),
            line: row.line,
        }
    }
}
