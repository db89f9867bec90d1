//! What becomes of a job whose attempt does not succeed, that is cancelled, or tried again.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Cause, Failure, Job, Touched, later, record::Story};
use crate::{
    entity::{
        job::{JobStatus, RetryPolicy},
        job_attempt::AttemptOutcome,
    },
    jobs::feed_records,
    pb::{self, JobChangeKind},
};

/// How many characters of an error a transition repeats.
const REASON: usize = 1_000;

impl Job {
    pub(super) fn rescue(&mut self, gone: Option<Uuid>, now: DateTime<Utc>) {
        let over = match gone {
            Some(lease_id) => self.row.lease_id == Some(lease_id),
            None => self
                .row
                .lease_expires_at
                .is_none_or(|expires| expires <= self.clock),
        };
        if self.row.status != JobStatus::Running || !over {
            return;
        }
        let worker = self.row.worker_id.clone().unwrap_or_default();
        if self.row.cancel_requested_at.is_some() {
            self.cancelled(None, "system", None, now);
            return;
        }
        let how = if gone.is_some() {
            "is gone"
        } else {
            "was not heard of"
        };
        let reason = format!("the worker {worker} {how}");
        self.row.rescues += 1;
        if self.row.rescues > self.row.max_rescues {
            let failure = Failure::own("RESCUES_EXHAUSTED", reason);
            self.end_attempt(AttemptOutcome::Rescued, Some(failure.clone()), None, now);
            self.fail_for_good(failure, "system", None, now);
            return;
        }
        self.end_attempt(AttemptOutcome::Rescued, None, None, now);
        let story = Story::new(JobChangeKind::Rescued, "system", None).because(Some(reason));
        self.queue_again(self.clock, story, now);
    }

    pub(super) fn expire(&mut self, now: DateTime<Utc>, random: f64) {
        let running = self.row.status == JobStatus::Running;
        let clock = self.clock;
        let has_passed = |time: Option<DateTime<Utc>>| time.is_some_and(|time| time <= clock);
        let late = has_passed(self.row.deadline_at);
        if self.row.status.is_finished()
            || !(late || running && has_passed(self.row.attempt_deadline_at))
        {
            return;
        }
        if running && self.row.cancel_requested_at.is_some() {
            self.cancelled(None, "timeout", None, now);
        } else if late {
            let failure = Failure::own("DEADLINE_EXCEEDED", "the job has taken too long".into());
            if running {
                self.end_attempt(AttemptOutcome::TimedOut, Some(failure.clone()), None, now);
            } else {
                self.give_up_next_attempt();
            }
            self.fail_for_good(failure, "timeout", None, now);
        } else {
            let ms = self.row.timeout_ms.unwrap_or_default();
            let message = format!("the attempt has taken longer than {ms} ms");
            let failure = Failure::own("TIMEOUT", message);
            self.fail(
                AttemptOutcome::TimedOut,
                failure,
                "timeout",
                None,
                now,
                random,
            );
        }
    }

    pub(super) fn refuse(&mut self, problem: String, now: DateTime<Utc>) {
        if self.row.status != JobStatus::Queued {
            return;
        }
        self.give_up_next_attempt();
        let failure = Failure::own("PAYLOAD_UNDELIVERABLE", problem);
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
        let own = || delay(self.policy, self.row.failures, random);
        let at = later(self.clock, failure.retry_after.unwrap_or_else(own));
        let reason = Some(shortened(&failure.message));
        self.blame(failure);
        let trigger = if trigger == "worker" {
            "retry"
        } else {
            trigger
        };
        let story = Story::new(JobChangeKind::Retrying, trigger, actor).because(reason);
        self.queue_again(at, story, now);
    }

    pub(super) fn fail_for_good(
        &mut self,
        failure: Failure,
        trigger: &'static str,
        actor: Option<String>,
        now: DateTime<Utc>,
    ) {
        let reason = Some(shortened(&failure.message));
        self.blame(failure);
        self.row.completed_at = Some(now);
        self.row.dead_at = self.row.dead_letter.then_some(now);
        let story = Story::new(JobChangeKind::Failed, trigger, actor).because(reason);
        self.become_(JobStatus::Failed, story, Touched::Everything, now);
    }

    /// It was queued for an attempt that it is not going to make.
    pub(super) fn give_up_next_attempt(&mut self) {
        if self.row.started_at.is_some() {
            self.row.attempt_number = (self.row.attempt_number - 1).max(1);
        }
    }

    pub(super) fn blame(&mut self, failure: Failure) {
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
            self.give_up_next_attempt();
            let story = Story::new(JobChangeKind::Cancelled, "user", Some(cause.actor));
            let story = story.because(cause.reason);
            self.become_(JobStatus::Cancelled, story, Touched::Everything, now);
            return;
        }
        self.touch(Touched::Everything);
        self.changes.push(pb::JobChange {
            triggered_by: "user".into(),
            actor: cause.actor,
            reason: cause.reason.unwrap_or_default(),
            ..feed_records::change(JobChangeKind::CancelRequested, self.row.clone())
        });
    }

    /// It was running, and is cancelled now as somebody asked.
    pub(super) fn cancelled(
        &mut self,
        failure: Option<Failure>,
        trigger: &'static str,
        actor: Option<String>,
        now: DateTime<Utc>,
    ) {
        self.end_attempt(AttemptOutcome::Cancelled, failure, None, now);
        self.row.completed_at = Some(now);
        let reason = self.row.cancel_reason.clone();
        let story = Story::new(JobChangeKind::Cancelled, trigger, actor).because(reason);
        self.become_(JobStatus::Cancelled, story, Touched::Everything, now);
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
        // It was for what the job was created for, and would be over at once.
        row.deadline_at = None;
        // One that was cancelled before its first attempt has still to make it.
        let attempted = row.started_at.is_some();
        let story = Story::new(JobChangeKind::Retried, "user", Some(cause.actor));
        row.attempt_number += i32::from(attempted);
        self.queue(at.unwrap_or(self.clock), story.because(cause.reason), now);
    }

    pub(super) fn queue_again(&mut self, at: DateTime<Utc>, story: Story, now: DateTime<Utc>) {
        self.row.attempt_number += 1;
        self.queue(at, story, now);
    }

    pub(super) fn queue(&mut self, at: DateTime<Utc>, story: Story, now: DateTime<Utc>) {
        let row = &mut self.row;
        row.scheduled_at = Some(at);
        row.next_retry_at = (story.kind == JobChangeKind::Retrying).then_some(at);
        row.progress_percent = 0;
        row.current_step = None;
        row.items_processed = None;
        row.items_total = None;
        row.progress_at = None;
        self.become_(JobStatus::Queued, story, Touched::Everything, now);
    }
}

impl Failure {
    fn own(code: &str, message: String) -> Self {
        Self {
            message,
            traceback: None,
            code: Some(code.into()),
            retryable: true,
            retry_after: None,
        }
    }
}

/// How long to wait after so many failures.
fn delay(policy: RetryPolicy, failures: i32, random: f64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "a week is far below 2^52 ms")]
    let (initial, most) = (policy.initial_ms as f64, policy.max_ms as f64);
    let wait = initial * policy.multiplier.powi(failures.saturating_sub(1));
    // Infinity is more than the most as well.
    let wait = wait.min(most);
    let wait = wait + wait * policy.jitter * random;
    Duration::try_from_secs_f64(wait / 1e3).unwrap_or_default()
}

fn shortened(text: &str) -> String {
    text.chars().take(REASON).collect()
}
