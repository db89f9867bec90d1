//! What becomes of a job when something happens to it: no database, no clock.
//!
//! Every change of a job's status is made here, together with what its attempts, transitions and watchers
//! are told of it.

mod end;
mod record;
mod report;
#[cfg(test)]
mod tests;

use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use sea_orm::ActiveValue::{NotSet, Set};
use serde_json::Value as Json;
use uuid::Uuid;

use crate::{
    entity::{
        job::{JobStatus, Model, RetryPolicy},
        job_attempt::{self, JobAttemptStatus},
        job_log::{self, JobLogLevel},
        job_transition,
    },
    error::{Error, Result},
    pb::{self, JobChangeKind},
    rpc::time,
};

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
    /// It cannot be given to any worker, for this reason, and fails without an attempt.
    Refuse(String),
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
    /// The time at which something happens to it. What is told is no earlier than what was told before; what decides,
    /// as leases and retries, goes by this one.
    clock: DateTime<Utc>,
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
            clock: DateTime::UNIX_EPOCH,
        }
    }

    /// Whether this can happen to it now.
    pub(super) fn may(&self, what: &Move) -> Result<()> {
        let row = &self.row;
        match what {
            Move::Claim { .. }
            | Move::Rescue { .. }
            | Move::Expire
            | Move::Refuse(_)
            | Move::Tell => Ok(()),
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
        self.clock = now;
        let now = self.no_earlier(now);
        match what {
            Move::Claim {
                worker_id,
                lease_id,
                lease,
            } => self.claim(worker_id, lease_id, lease, now),
            Move::Report(_, report) => {
                self.extend();
                self.report(report, now, random);
            }
            Move::Rescue { gone } => self.rescue(gone, now),
            Move::Expire => self.expire(now, random),
            Move::Refuse(problem) => self.refuse(problem, now),
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
        let (row, clock) = (&mut self.row, self.clock);
        row.started_at = Some(now);
        row.lease_id = Some(lease_id);
        row.worker_id = Some(worker_id.clone());
        row.lease_ms = Some(time::millis(lease));
        row.lease_expires_at = Some(later(clock, lease));
        row.heartbeat_at = Some(clock);
        row.attempt_deadline_at = row
            .timeout_ms
            .map(|ms| later(clock, Duration::from_millis(ms.unsigned_abs())));
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
        let story = record::Story::new(JobChangeKind::Started, "worker", Some(worker_id));
        self.become_(JobStatus::Running, story, Touched::Claim, now);
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

fn later(now: DateTime<Utc>, wait: Duration) -> DateTime<Utc> {
    (now + wait).trunc_subsecs(6)
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
