//! What becomes of a job when something happens to it: no database, no clock.
//!
//! Every change of a job's status is made here, together with what its attempts, transitions and watchers
//! are told of it.

use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use sea_orm::ActiveValue::{NotSet, Set};
use serde_json::Value as Json;
use uuid::Uuid;

use super::announce;
use crate::{
    entity::{
        job::{JobStatus, Model, RetryPolicy},
        job_attempt::{self, AttemptOutcome, JobAttemptStatus},
        job_log::{self, JobLogLevel},
        job_transition,
    },
    error::{Error, Result},
    pb::{self, JobChangeKind},
    rpc::time,
};

/// How many characters of an error a transition repeats.
const REASON: usize = 1_000;

/// What happens to a job.
#[derive(Debug, Clone)]
pub(super) enum Move {
    /// A worker begins an attempt.
    Claim {
        worker_id: String,
        lease_id: Uuid,
        lease: Duration,
    },
    /// The holder of the lease reports.
    Report(Uuid, Report),
    /// Its lease has expired, if it has; or this lease is one of a worker that is gone for good.
    Rescue { gone: Option<Uuid> },
    /// An attempt, or the whole job, has taken too long, if it has.
    Expire,
    /// Somebody wants it cancelled.
    Cancel(Cause),
    /// Somebody wants it tried again.
    Retry(Cause, Option<DateTime<Utc>>),
    /// Its watchers are to be told how far it is, of which they were not told in time.
    Tell,
}

/// What the holder of a lease reports.
#[derive(Debug, Clone)]
pub(super) enum Report {
    Complete(Option<Json>),
    Fail(Failure),
    Release {
        reason: Option<String>,
        snooze: Option<Duration>,
    },
    AcknowledgeCancellation,
    /// And whether its watchers are told at once.
    Progress(Progress, bool),
    Logs {
        lines: Vec<Line>,
        offset: Option<i64>,
    },
    /// The worker is there.
    Heartbeat,
}

/// Why an attempt has failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub message: String,
    pub traceback: Option<String>,
    pub code: Option<String>,
    pub retryable: bool,
    /// Instead of what the policy says.
    pub retry_after: Option<Duration>,
}

/// How far a job is. What is absent stays as it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    pub percent: Option<i32>,
    pub step: Option<String>,
    pub processed: Option<i64>,
    pub total: Option<i64>,
}

/// What is to be logged.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub message: String,
    pub level: JobLogLevel,
    pub timestamp: Option<DateTime<Utc>>,
    pub context: Option<Json>,
}

/// Who wants something, and why.
#[derive(Debug, Clone, Default)]
pub(super) struct Cause {
    pub actor: String,
    pub reason: Option<String>,
}

/// A job that is locked, and what is to be written of it.
#[derive(Debug)]
pub(super) struct Job {
    pub row: Model,
    /// How it was before.
    pub before: JobStatus,
    pub touched: Touched,
    /// The attempt that began.
    pub begun: Option<job_attempt::ActiveModel>,
    /// Attempts that ended.
    pub ended: Vec<job_attempt::ActiveModel>,
    pub transitions: Vec<job_transition::ActiveModel>,
    pub lines: Vec<job_log::Model>,
    pub changes: Vec<pb::JobChange>,
    /// How many lines the current attempt has logged, where that is needed.
    pub attempt_lines: Option<i64>,
    /// What the job waits after failures if it does not say so itself.
    pub policy: RetryPolicy,
}

/// Which columns of a job are to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Touched {
    Nothing,
    /// What a claim sets.
    Claim,
    /// What the completion of a job sets that had no trouble.
    Completion,
    /// When the lease expires.
    Lease,
    /// That, progress, and the length of the log.
    Progress,
    Everything,
}

impl Job {
    pub(super) fn new(row: Model, policy: RetryPolicy) -> Self {
        Self {
            before: row.status,
            policy: row.retry_policy.unwrap_or(policy),
            row,
            touched: Touched::Nothing,
            begun: None,
            ended: Vec::new(),
            transitions: Vec::new(),
            lines: Vec::new(),
            changes: Vec::new(),
            attempt_lines: None,
        }
    }

    /// Whether this can happen to it now.
    pub(super) fn may(&self, what: &Move) -> Result<()> {
        let row = &self.row;
        match what {
            Move::Claim { .. } | Move::Rescue { .. } | Move::Expire | Move::Tell => Ok(()),
            Move::Report(lease_id, report) => {
                if row.status != JobStatus::Running || row.lease_id != Some(*lease_id) {
                    return Err(Error::LeaseLost {
                        job_id: row.id.to_string(),
                        status: label(row.status),
                        index: None,
                    });
                }
                let asked = row.cancel_requested_at.is_some();
                match report {
                    Report::Complete(_) if asked => Err(Error::JobCancelled {
                        job_id: row.id.to_string(),
                        index: None,
                    }),
                    Report::AcknowledgeCancellation if !asked => Err(wrong_status(row.status)),
                    Report::Logs { offset, .. } => {
                        let there = self.attempt_lines.unwrap_or_default();
                        if offset.is_some_and(|offset| offset > there) {
                            let problem = format!("must not be more than there are: {there}");
                            return Err(Error::invalid("offset", problem));
                        }
                        Ok(())
                    }
                    Report::Complete(_)
                    | Report::Fail(_)
                    | Report::Release { .. }
                    | Report::AcknowledgeCancellation
                    | Report::Progress(..)
                    | Report::Heartbeat => Ok(()),
                }
            }
            Move::Cancel(_) => match row.status {
                JobStatus::Queued | JobStatus::Running | JobStatus::Cancelled => Ok(()),
                JobStatus::Completed | JobStatus::Failed => Err(wrong_status(row.status)),
            },
            Move::Retry(..) => match row.status {
                JobStatus::Failed | JobStatus::Cancelled => Ok(()),
                JobStatus::Queued | JobStatus::Running | JobStatus::Completed => {
                    Err(wrong_status(row.status))
                }
            },
        }
    }

    /// Has it happen. `may` has to have said yes. `random` is in [0, 1).
    pub(super) fn happen(&mut self, what: Move, now: DateTime<Utc>, random: f64) {
        let now = self.no_earlier(now);
        match what {
            Move::Claim {
                worker_id,
                lease_id,
                lease,
            } => self.claim(worker_id, lease_id, lease, now),
            Move::Report(_, report) => {
                self.extend(now);
                self.report(report, now, random);
            }
            Move::Rescue { gone } => self.rescue(gone, now),
            Move::Expire => self.expire(now, random),
            Move::Cancel(cause) => self.cancel(cause, now),
            Move::Retry(cause, at) => self.retry(cause, at, now),
            Move::Tell => self.tell_progress(),
        }
    }

    /// Clocks are set back, and those of processes differ; the story of a job must not.
    fn no_earlier(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        let row = &self.row;
        let times = [row.transitioned_at, row.started_at, row.completed_at];
        let last = times.into_iter().flatten().fold(row.created_at, Ord::max);
        now.max(last)
    }

    fn claim(&mut self, worker_id: String, lease_id: Uuid, lease: Duration, now: DateTime<Utc>) {
        let row = &mut self.row;
        row.started_at = Some(now);
        row.lease_id = Some(lease_id);
        row.worker_id = Some(worker_id.clone());
        row.lease_ms = Some(time::millis(lease));
        row.lease_expires_at = Some(later(now, lease));
        row.heartbeat_at = Some(now);
        row.attempt_deadline_at = row
            .timeout_ms
            .map(|ms| later(now, Duration::from_millis(ms.unsigned_abs())));
        self.begun = Some(job_attempt::ActiveModel {
            id: Set(Uuid::now_v7()),
            job_id: Set(row.id),
            attempt_number: Set(row.attempt_number),
            started_at: Set(now),
            ended_at: NotSet,
            status: Set(JobAttemptStatus::Started),
            worker_id: Set(Some(worker_id.clone())),
            error_message: NotSet,
            error_traceback: NotSet,
            result: NotSet,
            lease_id: Set(Some(lease_id)),
            outcome: NotSet,
            error_code: NotSet,
        });
        let story = Story::new(JobChangeKind::Started, "worker", Some(worker_id));
        self.become_(JobStatus::Running, story, Touched::Claim, now);
    }

    fn report(&mut self, report: Report, now: DateTime<Utc>, random: f64) {
        let worker = self.row.worker_id.clone();
        match report {
            Report::Complete(result) => {
                let troubled = self.row.failures > 0 || self.row.rescues > 0;
                self.end_attempt(AttemptOutcome::Succeeded, None, result.clone(), now);
                let row = &mut self.row;
                row.result = result;
                row.progress_percent = 100;
                row.completed_at = Some(now);
                row.error_message = None;
                row.error_traceback = None;
                row.error_code = None;
                let touched = if troubled {
                    Touched::Everything
                } else {
                    Touched::Completion
                };
                let story = Story::new(JobChangeKind::Completed, "worker", worker);
                self.become_(JobStatus::Completed, story, touched, now);
            }
            Report::Fail(failure) if self.row.cancel_requested_at.is_some() => {
                self.cancelled(Some(failure), "worker", worker, now);
            }
            Report::Fail(failure) => {
                self.fail(
                    AttemptOutcome::Failed,
                    failure,
                    "worker",
                    worker,
                    now,
                    random,
                );
            }
            Report::Release { .. } if self.row.cancel_requested_at.is_some() => {
                self.cancelled(None, "worker", worker, now);
            }
            Report::Release { reason, snooze } => {
                let (outcome, kind) = match snooze {
                    Some(_) => (AttemptOutcome::Snoozed, JobChangeKind::Snoozed),
                    None => (AttemptOutcome::Released, JobChangeKind::Released),
                };
                self.end_attempt(outcome, None, None, now);
                // One that was not worked keeps its place.
                let at = snooze.map(|snooze| later(now, snooze));
                let at = at.or(self.row.scheduled_at).unwrap_or(now);
                let story = Story::new(kind, "worker", worker).because(reason);
                self.queue_again(at, story, now);
            }
            Report::AcknowledgeCancellation => self.cancelled(None, "worker", worker, now),
            Report::Progress(progress, tell) => {
                self.progress(progress, now);
                if tell {
                    self.tell_progress();
                }
            }
            Report::Logs { lines, offset } => self.log(lines, offset, now),
            Report::Heartbeat => {}
        }
    }

    fn progress(&mut self, progress: Progress, now: DateTime<Utc>) {
        let row = &mut self.row;
        if let Some(step) = progress.step {
            row.current_step = Some(step);
        }
        row.items_processed = progress.processed.or(row.items_processed);
        row.items_total = progress.total.or(row.items_total);
        let counted = progress.processed.is_some() || progress.total.is_some();
        let by_items = row.items_processed.zip(row.items_total);
        let by_items = by_items.filter(|_| counted).map(|(processed, total)| {
            let percent = processed.min(total).saturating_mul(100) / total.max(1);
            i32::try_from(percent).unwrap_or(100).clamp(0, 100)
        });
        if let Some(percent) = progress.percent.or(by_items) {
            row.progress_percent = percent;
        }
        row.progress_at = Some(now);
        self.touch(Touched::Progress);
    }

    fn tell_progress(&mut self) {
        if self.row.status == JobStatus::Running {
            let change = announce::change(JobChangeKind::Progress, self.row.clone());
            self.changes.push(change);
        }
    }

    fn log(&mut self, lines: Vec<Line>, offset: Option<i64>, now: DateTime<Utc>) {
        let there = self.attempt_lines.unwrap_or_default();
        let known = offset.map_or(0, |offset| there - offset);
        let known = usize::try_from(known).unwrap_or_default();
        for line in lines.into_iter().skip(known) {
            self.row.log_lines += 1;
            self.attempt_lines = self.attempt_lines.map(|lines| lines + 1);
            self.lines.push(job_log::Model {
                id: Uuid::now_v7(),
                job_id: self.row.id,
                attempt_number: self.row.attempt_number,
                timestamp: line.timestamp.unwrap_or(now),
                level: line.level,
                message: line.message,
                context: line.context,
                line: Some(self.row.log_lines),
            });
        }
        self.touch(Touched::Progress);
    }

    /// The worker is heard of.
    fn extend(&mut self, now: DateTime<Utc>) {
        let lease = self.row.lease_ms.unwrap_or_default().unsigned_abs();
        self.row.lease_expires_at = Some(later(now, Duration::from_millis(lease)));
        self.row.heartbeat_at = Some(now);
        self.touch(Touched::Lease);
    }

    fn rescue(&mut self, gone: Option<Uuid>, now: DateTime<Utc>) {
        let over = match gone {
            Some(lease_id) => self.row.lease_id == Some(lease_id),
            None => self
                .row
                .lease_expires_at
                .is_none_or(|expires| expires <= now),
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
        self.queue_again(now, story, now);
    }

    fn expire(&mut self, now: DateTime<Utc>, random: f64) {
        let running = self.row.status == JobStatus::Running;
        let has_passed = |time: Option<DateTime<Utc>>| time.is_some_and(|time| time <= now);
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

    fn fail(
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
        let at = later(now, failure.retry_after.unwrap_or_else(own));
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

    fn fail_for_good(
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
    fn give_up_next_attempt(&mut self) {
        if self.row.started_at.is_some() {
            self.row.attempt_number = (self.row.attempt_number - 1).max(1);
        }
    }

    fn blame(&mut self, failure: Failure) {
        self.row.error_message = Some(failure.message);
        self.row.error_traceback = failure.traceback;
        self.row.error_code = failure.code;
    }

    fn cancel(&mut self, cause: Cause, now: DateTime<Utc>) {
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
            ..announce::change(JobChangeKind::CancelRequested, self.row.clone())
        });
    }

    /// It was running, and is cancelled now as somebody asked.
    fn cancelled(
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

    fn retry(&mut self, cause: Cause, at: Option<DateTime<Utc>>, now: DateTime<Utc>) {
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
        self.queue(at.unwrap_or(now), story.because(cause.reason), now);
    }

    fn queue_again(&mut self, at: DateTime<Utc>, story: Story, now: DateTime<Utc>) {
        self.row.attempt_number += 1;
        self.queue(at, story, now);
    }

    fn queue(&mut self, at: DateTime<Utc>, story: Story, now: DateTime<Utc>) {
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

    fn end_attempt(
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

    fn become_(&mut self, next: JobStatus, story: Story, touched: Touched, now: DateTime<Utc>) {
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
            ..announce::change(story.kind, self.row.clone())
        });
    }

    fn touch(&mut self, touched: Touched) {
        use Touched::{Lease, Nothing, Progress};
        self.touched = match (self.touched, touched) {
            (Nothing | Lease, new) => new,
            (old, Lease) => old,
            (Progress, Progress) => Progress,
            _ => Touched::Everything,
        };
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

/// What is told of a change of status.
struct Story {
    kind: JobChangeKind,
    trigger: &'static str,
    actor: Option<String>,
    reason: Option<String>,
}

impl Story {
    fn new(kind: JobChangeKind, trigger: &'static str, actor: Option<String>) -> Self {
        Self {
            kind,
            trigger,
            actor,
            reason: None,
        }
    }

    fn because(self, reason: Option<String>) -> Self {
        Self { reason, ..self }
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

fn later(now: DateTime<Utc>, wait: Duration) -> DateTime<Utc> {
    (now + wait).trunc_subsecs(6)
}

fn shortened(text: &str) -> String {
    text.chars().take(REASON).collect()
}

fn wrong_status(status: JobStatus) -> Error {
    Error::WrongStatus {
        resource: "job",
        status: label(status),
    }
}

/// A status as errors have it.
pub(super) fn label(status: JobStatus) -> String {
    status.as_str().to_uppercase()
}
