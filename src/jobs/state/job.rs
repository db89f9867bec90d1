//! A locked job, the moves of a job, and the reports of workers.
//!
//! Every change of a job's status is made here, together with what its attempts, transitions and watchers
//! are told of it.

use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use serde_json::Value as Json;
use uuid::Uuid;

use crate::{
    entity::{
        job::{JobStatus, Model, RetryPolicy},
        job_attempt,
        job_log::{self, JobLogLevel},
        job_transition,
    },
    pb,
};

/// Move of a job.
#[derive(Debug, Clone)]
pub(in crate::jobs) enum Move {
    /// A worker starts an attempt.
    Claim { worker_id: String, lease_id: Uuid, lease: Duration },
    /// The holder of a lease reports.
    Report(Uuid, Report),
    /// A lease ended without a report: `disconnected_lease` of a disconnected worker, or else the current lease if
    /// expired.
    Rescue { disconnected_lease: Option<Uuid> },
    /// The attempt timeout or the job deadline has passed, if the clock confirms.
    Expire,
    /// A client requests the cancellation.
    Cancel(Cause),
    /// A client retries the job, at a time or now.
    Retry(Cause, Option<DateTime<Utc>>),
    /// No worker can receive the job, for the given reason. The job fails without an attempt.
    Refuse(String),
    /// Watchers receive the progress held back by the throttle.
    PublishProgress,
}

/// Report of a lease holder.
#[derive(Debug, Clone)]
pub(in crate::jobs) enum Report {
    Complete(Option<Json>),
    Fail(Failure),
    Release {
        reason: Option<String>,
        snooze: Option<Duration>,
    },
    AcknowledgeCancellation,
    /// Progress, and true to publish the progress to watchers now.
    Progress(Progress, bool),
    Logs {
        lines: Vec<LogLine>,
        offset: Option<i64>,
    },
    /// The worker is alive. The lease is extended.
    Heartbeat,
}

/// Failure of an attempt.
#[derive(Debug, Clone)]
pub(in crate::jobs) struct Failure {
    pub message: String,
    pub traceback: Option<String>,
    pub code: Option<String>,
    pub retryable: bool,
    /// Retry delay in place of the delay of the retry policy.
    pub retry_after: Option<Duration>,
}

/// Progress of a job. Absent fields keep their value.
#[derive(Debug, Clone, Default)]
pub(in crate::jobs) struct Progress {
    pub percent: Option<i32>,
    pub step: Option<String>,
    pub processed: Option<i64>,
    pub total: Option<i64>,
}

/// Line to log.
#[derive(Debug, Clone)]
pub(in crate::jobs) struct LogLine {
    pub message: String,
    pub level: JobLogLevel,
    pub timestamp: Option<DateTime<Utc>>,
    pub context: Option<Json>,
}

/// Actor and reason of a request.
#[derive(Debug, Clone, Default)]
pub(in crate::jobs) struct Cause {
    pub actor: String,
    pub reason: Option<String>,
}

/// Locked job with the changes to write.
#[derive(Debug)]
pub(in crate::jobs) struct Job {
    pub row: Model,
    /// Status before the moves.
    pub previous_status: JobStatus,
    pub changed_columns: ChangedColumns,
    /// Attempt started by a claim.
    pub started_attempt: Option<job_attempt::ActiveModel>,
    /// Attempts ended by the moves.
    pub ended_attempts: Vec<job_attempt::ActiveModel>,
    pub transitions: Vec<job_transition::ActiveModel>,
    pub lines: Vec<job_log::Model>,
    pub changes: Vec<pb::JobChange>,
    /// Number of log lines of the current attempt. Read only for logs reported from an offset.
    pub attempt_lines: Option<i64>,
    /// Retry policy of the job, or else of its type.
    pub policy: RetryPolicy,
    /// Current time of the move. Leases and retries use the clock unchanged; recorded times never precede earlier
    /// ones.
    pub(super) clock: DateTime<Utc>,
}

/// Columns of a job row to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::jobs) enum ChangedColumns {
    Nothing,
    /// Columns set by a claim.
    Claim,
    /// Columns set by the completion of a job without earlier failures.
    Completion,
    /// Expiry of the lease.
    Lease,
    /// Expiry of the lease, progress, and the number of log lines.
    Progress,
    Everything,
}

impl Job {
    pub(in crate::jobs) fn new(row: Model, policy: RetryPolicy) -> Self {
        Self {
            previous_status: row.status,
            policy: row.retry_policy.unwrap_or(policy),
            row,
            changed_columns: ChangedColumns::Nothing,
            started_attempt: None,
            ended_attempts: Vec::new(),
            transitions: Vec::new(),
            lines: Vec::new(),
            changes: Vec::new(),
            attempt_lines: None,
            clock: DateTime::UNIX_EPOCH,
        }
    }

    pub(super) fn mark_changed(&mut self, changed: ChangedColumns) {
        use ChangedColumns::{Lease, Nothing, Progress};
        self.changed_columns = match (self.changed_columns, changed) {
            (Nothing | Lease, new) => new,
            (old, Lease) => old,
            (Progress, Progress) => Progress,
            _ => ChangedColumns::Everything,
        };
    }
}

pub(super) fn later(now: DateTime<Utc>, wait: Duration) -> DateTime<Utc> {
    (now + wait).trunc_subsecs(6)
}

/// Label of a status in error details, in capitals.
pub(in crate::jobs) fn label(status: JobStatus) -> String {
    status.as_str().to_uppercase()
}
