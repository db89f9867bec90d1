//! Records of a status change: the end of the attempt, the transition, and the feed change.

use chrono::{DateTime, Utc};
use sea_orm::ActiveValue::{NotSet, Set};
use serde_json::Value as Json;
use uuid::Uuid;

use super::job::{ChangedColumns, Failure, Job};
use crate::{
    entity::{
        job::JobStatus,
        job_attempt::{self, AttemptOutcome, JobAttemptStatus},
        job_transition,
    },
    jobs::feed_records,
    pb::{self, JobChangeKind},
};

/// Description of a status change, for the transition and the feed change.
pub(super) struct ChangeRecord {
    pub kind: JobChangeKind,
    trigger: &'static str,
    actor: Option<String>,
    reason: Option<String>,
}

impl ChangeRecord {
    pub(super) fn new(kind: JobChangeKind, trigger: &'static str, actor: Option<String>) -> Self {
        Self { kind, trigger, actor, reason: None }
    }

    pub(super) fn with_reason(self, reason: Option<String>) -> Self {
        Self { reason, ..self }
    }
}

impl Job {
    pub(super) fn end_attempt(
        &mut self,
        outcome: AttemptOutcome,
        failure: Option<Failure>,
        result: Option<Json>,
        now: DateTime<Utc>,
    ) {
        let status = match outcome {
            AttemptOutcome::Succeeded => JobAttemptStatus::Succeeded,
            AttemptOutcome::Failed | AttemptOutcome::TimedOut => JobAttemptStatus::Failed,
            AttemptOutcome::Rescued
            | AttemptOutcome::Released
            | AttemptOutcome::Snoozed
            | AttemptOutcome::Cancelled => JobAttemptStatus::Cancelled,
        };
        let mut ended = job_attempt::ActiveModel {
            id: NotSet,
            job_id: Set(self.row.id),
            attempt_number: Set(self.row.attempt_number),
            started_at: NotSet,
            ended_at: Set(Some(now)),
            status: Set(status),
            worker_id: NotSet,
            error_message: NotSet,
            error_traceback: NotSet,
            result: NotSet,
            lease_id: NotSet,
            outcome: Set(Some(outcome)),
            error_code: NotSet,
        };
        if let Some(failure) = failure {
            ended.error_message = Set(Some(failure.message));
            ended.error_traceback = Set(failure.traceback);
            ended.error_code = Set(failure.code);
        }
        if result.is_some() {
            ended.result = Set(result);
        }
        self.ended_attempts.push(ended);
    }

    pub(super) fn transition(
        &mut self,
        next: JobStatus,
        record: ChangeRecord,
        changed: ChangedColumns,
        now: DateTime<Utc>,
    ) {
        let from = self.row.status;
        // A transition belongs to the attempt started or ended by the transition.
        let number = self.row.attempt_number - i32::from(next == JobStatus::Queued);
        let row = &mut self.row;
        row.status = next;
        row.version_id += 1;
        row.transitioned_at = Some(now);
        if next != JobStatus::Queued {
            row.next_retry_at = None;
        }
        if next != JobStatus::Running {
            row.lease_id = None;
            row.lease_expires_at = None;
            row.attempt_deadline_at = None;
        }
        self.mark_changed(changed);
        self.transitions.push(job_transition::ActiveModel {
            id: Set(Uuid::now_v7()),
            job_id: Set(self.row.id),
            from_status: Set(from.as_str().into()),
            to_status: Set(next.as_str().into()),
            transitioned_at: Set(now),
            triggered_by: Set(record.trigger.into()),
            metadata_json: NotSet,
            version_id: Set(Some(self.row.version_id)),
            attempt_number: Set(Some(number.max(1))),
            actor: Set(record.actor.clone()),
            reason: Set(record.reason.clone()),
        });
        self.changes.push(pb::JobChange {
            triggered_by: record.trigger.into(),
            actor: record.actor.unwrap_or_default(),
            reason: record.reason.unwrap_or_default(),
            ..feed_records::job_change(record.kind, self.row.clone())
        });
    }
}
