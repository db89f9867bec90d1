//! Failed, rescued, expired, cancelled and retried attempts.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    job::{Cause, ChangedColumns, Failure, Job, later},
    record::ChangeRecord,
};
use crate::{
    entity::{
        job::{JobStatus, RetryPolicy},
        job_attempt::AttemptOutcome,
    },
    jobs::feed_records,
    pb::{self, JobChangeKind},
};

/// Maximum number of characters of an error message repeated as the reason of a transition.
const MAX_REASON_CHARS: usize = 1_000;

impl Job {
    pub(super) fn rescue(&mut self, disconnected_lease: Option<Uuid>, now: DateTime<Utc>) {
        let has_ended = match disconnected_lease {
            Some(lease_id) => self.row.lease_id == Some(lease_id),
            None => self.row.lease_expires_at.is_none_or(|expires| expires <= self.clock),
        };
        if self.row.status != JobStatus::Running || !has_ended {
            return;
        }
        let worker = self.row.worker_id.clone().unwrap_or_default();
        if self.row.cancel_requested_at.is_some() {
            self.finish_cancelled(None, "system", None, now);
            return;
        }
        let reason = if disconnected_lease.is_some() {
            format!("the worker {worker} disconnected")
        } else {
            format!("the worker {worker} sent no heartbeat before its lease expired")
        };
        self.row.rescues += 1;
        if self.row.rescues > self.row.max_rescues {
            let failure = Failure::by_server("RESCUES_EXHAUSTED", reason);
            self.end_attempt(AttemptOutcome::Rescued, Some(failure.clone()), None, now);
            self.fail_for_good(failure, "system", None, now);
            return;
        }
        self.end_attempt(AttemptOutcome::Rescued, None, None, now);
        let record = ChangeRecord::new(JobChangeKind::Rescued, "system", None).with_reason(Some(reason));
        self.queue_again(self.clock, record, now);
    }

    pub(super) fn expire(&mut self, now: DateTime<Utc>, random: f64) {
        let running = self.row.status == JobStatus::Running;
        let clock = self.clock;
        let has_passed = |time: Option<DateTime<Utc>>| time.is_some_and(|time| time <= clock);
        let is_late = has_passed(self.row.deadline_at);
        if self.row.status.is_finished() || !(is_late || running && has_passed(self.row.attempt_deadline_at)) {
            return;
        }
        if running && self.row.cancel_requested_at.is_some() {
            self.finish_cancelled(None, "timeout", None, now);
        } else if is_late {
            let failure = Failure::by_server("DEADLINE_EXCEEDED", "the deadline of the job has passed".into());
            if running {
                self.end_attempt(AttemptOutcome::TimedOut, Some(failure.clone()), None, now);
            } else {
                self.revert_attempt_number();
            }
            self.fail_for_good(failure, "timeout", None, now);
        } else {
            let ms = self.row.timeout_ms.unwrap_or_default();
            let message = format!("the attempt exceeded its timeout of {ms} ms");
            let failure = Failure::by_server("TIMEOUT", message);
            self.fail(AttemptOutcome::TimedOut, failure, "timeout", None, now, random);
        }
    }

    pub(super) fn refuse(&mut self, problem: String, now: DateTime<Utc>) {
        if self.row.status != JobStatus::Queued {
            return;
        }
        self.revert_attempt_number();
        let failure = Failure::by_server("PAYLOAD_UNDELIVERABLE", problem);
        self.fail_for_good(failure, "system", None, now);
    }

    pub(super) fn fail(
        &mut self,
        outcome: AttemptOutcome,
        failure: Failure,
        trigger: &'static str,
        actor: Option<String>,
        now: DateTime<Utc>,
        random: f64,
    ) {
        self.end_attempt(outcome, Some(failure.clone()), None, now);
        self.row.failures += 1;
        if !failure.retryable || self.row.failures >= self.row.max_attempts {
            self.fail_for_good(failure, trigger, actor, now);
            return;
        }
        let by_policy = || retry_delay(self.policy, self.row.failures, random);
        let at = later(self.clock, failure.retry_after.unwrap_or_else(by_policy));
        let reason = Some(truncated(&failure.message));
        self.set_error(failure);
        let trigger = if trigger == "worker" { "retry" } else { trigger };
        let record = ChangeRecord::new(JobChangeKind::Retrying, trigger, actor).with_reason(reason);
        self.queue_again(at, record, now);
    }

    pub(super) fn fail_for_good(
        &mut self,
        failure: Failure,
        trigger: &'static str,
        actor: Option<String>,
        now: DateTime<Utc>,
    ) {
        let reason = Some(truncated(&failure.message));
        self.set_error(failure);
        self.row.completed_at = Some(now);
        self.row.dead_at = self.row.dead_letter.then_some(now);
        let record = ChangeRecord::new(JobChangeKind::Failed, trigger, actor).with_reason(reason);
        self.transition(JobStatus::Failed, record, ChangedColumns::Everything, now);
    }

    /// Takes back the number of the next attempt of a queued job.
    pub(super) fn revert_attempt_number(&mut self) {
        if self.row.started_at.is_some() {
            self.row.attempt_number = (self.row.attempt_number - 1).max(1);
        }
    }

    pub(super) fn set_error(&mut self, failure: Failure) {
        self.row.error_message = Some(failure.message);
        self.row.error_traceback = failure.traceback;
        self.row.error_code = failure.code;
    }

    pub(super) fn cancel(&mut self, cause: Cause, now: DateTime<Utc>) {
        let row = &mut self.row;
        if row.status == JobStatus::Cancelled || row.cancel_requested_at.is_some() {
            return;
        }
        row.cancel_requested_at = Some(now);
        row.cancel_requested_by = Some(cause.actor.clone());
        row.cancel_reason.clone_from(&cause.reason);
        if row.status == JobStatus::Queued {
            row.completed_at = Some(now);
            self.revert_attempt_number();
            let record = ChangeRecord::new(JobChangeKind::Cancelled, "user", Some(cause.actor));
            let record = record.with_reason(cause.reason);
            self.transition(JobStatus::Cancelled, record, ChangedColumns::Everything, now);
            return;
        }
        self.mark_changed(ChangedColumns::Everything);
        self.changes.push(pb::JobChange {
            triggered_by: "user".into(),
            actor: cause.actor,
            reason: cause.reason.unwrap_or_default(),
            ..feed_records::job_change(JobChangeKind::CancelRequested, self.row.clone())
        });
    }

    /// Ends a running job with a requested cancellation.
    pub(super) fn finish_cancelled(
        &mut self,
        failure: Option<Failure>,
        trigger: &'static str,
        actor: Option<String>,
        now: DateTime<Utc>,
    ) {
        self.end_attempt(AttemptOutcome::Cancelled, failure, None, now);
        self.row.completed_at = Some(now);
        let reason = self.row.cancel_reason.clone();
        let record = ChangeRecord::new(JobChangeKind::Cancelled, trigger, actor).with_reason(reason);
        self.transition(JobStatus::Cancelled, record, ChangedColumns::Everything, now);
    }

    pub(super) fn retry(&mut self, cause: Cause, at: Option<DateTime<Utc>>, now: DateTime<Utc>) {
        let row = &mut self.row;
        row.queue_name.get_or_insert_with(|| "default".into());
        row.failures = 0;
        row.rescues = 0;
        row.error_message = None;
        row.error_traceback = None;
        row.error_code = None;
        row.result = None;
        row.completed_at = None;
        row.dead_at = None;
        row.cancel_requested_at = None;
        row.cancel_requested_by = None;
        row.cancel_reason = None;
        // The deadline belongs to the first run. A passed deadline would end the retried job at once.
        row.deadline_at = None;
        // A job cancelled before its first attempt keeps the attempt number.
        let attempted = row.started_at.is_some();
        let record = ChangeRecord::new(JobChangeKind::Retried, "user", Some(cause.actor));
        row.attempt_number += i32::from(attempted);
        self.queue(at.unwrap_or(self.clock), record.with_reason(cause.reason), now);
    }

    pub(super) fn queue_again(&mut self, at: DateTime<Utc>, record: ChangeRecord, now: DateTime<Utc>) {
        self.row.attempt_number += 1;
        self.queue(at, record, now);
    }

    pub(super) fn queue(&mut self, at: DateTime<Utc>, record: ChangeRecord, now: DateTime<Utc>) {
        let row = &mut self.row;
        row.scheduled_at = Some(at);
        row.next_retry_at = (record.kind == JobChangeKind::Retrying).then_some(at);
        row.progress_percent = 0;
        row.current_step = None;
        row.items_processed = None;
        row.items_total = None;
        row.progress_at = None;
        self.transition(JobStatus::Queued, record, ChangedColumns::Everything, now);
    }
}

impl Failure {
    fn by_server(code: &str, message: String) -> Self {
        Self { message, traceback: None, code: Some(code.into()), retryable: true, retry_after: None }
    }
}

/// Delay before the next attempt after a number of failures.
fn retry_delay(policy: RetryPolicy, failures: i32, random: f64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "a week is far below 2^52 ms")]
    let (initial_ms, max_ms) = (policy.initial_ms as f64, policy.max_ms as f64);
    let unbounded_ms = initial_ms * policy.multiplier.powi(failures.saturating_sub(1));
    // `min` also bounds infinity.
    let bounded_ms = unbounded_ms.min(max_ms);
    let delay_ms = bounded_ms + bounded_ms * policy.jitter * random;
    Duration::try_from_secs_f64(delay_ms / 1e3).unwrap_or_default()
}

fn truncated(text: &str) -> String {
    text.chars().take(MAX_REASON_CHARS).collect()
}
