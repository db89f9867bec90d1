//! What is recorded of a change: the end of an attempt, the transition, and what watchers are told.

use chrono::{DateTime, Utc};
use sea_orm::ActiveValue::{NotSet, Set};
use serde_json::Value as Json;
use uuid::Uuid;

use super::{Failure, Job, Touched};
use crate::{
    entity::{
        job::JobStatus,
        job_attempt::{self, AttemptOutcome, JobAttemptStatus},
        job_transition,
    },
    jobs::feed_records,
    pb::{self, JobChangeKind},
};

/// What is told of a change of status.
pub(super) struct Story {
    pub kind: JobChangeKind,
    trigger: &'static str,
    actor: Option<String>,
    reason: Option<String>,
}

impl Story {
    pub(super) fn new(kind: JobChangeKind, trigger: &'static str, actor: Option<String>) -> Self {
        Self {
            kind,
            trigger,
            actor,
            reason: None,
        }
    }

    pub(super) fn because(self, reason: Option<String>) -> Self {
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
        self.ended.push(ended);
    }

    pub(super) fn become_(
        &mut self,
        next: JobStatus,
        story: Story,
        touched: Touched,
        now: DateTime<Utc>,
    ) {
        let from = self.row.status;
        // A transition is about the attempt that it began or ended.
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
        self.touch(touched);
        self.transitions.push(job_transition::ActiveModel {
            id: Set(Uuid::now_v7()),
            job_id: Set(self.row.id),
            from_status: Set(from.as_str().into()),
            to_status: Set(next.as_str().into()),
            transitioned_at: Set(now),
            triggered_by: Set(story.trigger.into()),
            metadata_json: NotSet,
            version_id: Set(Some(self.row.version_id)),
            attempt_number: Set(Some(number.max(1))),
            actor: Set(story.actor.clone()),
            reason: Set(story.reason.clone()),
        });
        self.changes.push(pb::JobChange {
            triggered_by: story.trigger.into(),
            actor: story.actor.unwrap_or_default(),
            reason: story.reason.unwrap_or_default(),
            ..feed_records::change(story.kind, self.row.clone())
        });
    }
}
