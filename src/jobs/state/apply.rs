//! Application of moves to a job: the check, and the dispatch by kind of move.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::ActiveValue::{NotSet, Set};
use uuid::Uuid;

use super::{
    job::{ChangedColumns, Job, Move, Report, label, later},
    record::ChangeRecord,
};
use crate::{
    entity::{
        job::JobStatus,
        job_attempt::{self, JobAttemptStatus},
    },
    error::{Error, Result},
    pb::JobChangeKind,
    rpc::time,
};

impl Job {
    /// Checks whether a move is allowed now.
    pub(in crate::jobs) fn check(&self, job_move: &Move) -> Result<()> {
        let row = &self.row;
        match job_move {
            Move::Claim { .. } | Move::Rescue { .. } | Move::Expire | Move::Refuse(_) | Move::PublishProgress => Ok(()),
            Move::Report(lease_id, report) => {
                if row.status != JobStatus::Running || row.lease_id != Some(*lease_id) {
                    return Err(Error::LeaseLost {
                        job_id: row.id.to_string(),
                        status: label(row.status),
                        index: None,
                    });
                }
                let is_cancelling = row.cancel_requested_at.is_some();
                match report {
                    Report::Complete(_) if is_cancelling => {
                        Err(Error::JobCancelled { job_id: row.id.to_string(), index: None })
                    }
                    Report::AcknowledgeCancellation if !is_cancelling => Err(wrong_status(row.status)),
                    Report::Logs { offset, .. } => {
                        let lines = self.attempt_lines.unwrap_or_default();
                        if let Some(offset) = offset.filter(|offset| *offset > lines) {
                            let problem = format!("must be in [0, {lines}], got {offset}");
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
                JobStatus::Queued | JobStatus::Running | JobStatus::Completed => Err(wrong_status(row.status)),
            },
        }
    }

    /// Applies a move. Call [`check`](Self::check) first. `random` in [0, 1) scales the jitter of retries.
    pub(in crate::jobs) fn apply(&mut self, job_move: Move, now: DateTime<Utc>, random: f64) {
        self.clock = now;
        let now = self.no_earlier_time(now);
        match job_move {
            Move::Claim { worker_id, lease_id, lease } => self.claim(worker_id, lease_id, lease, now),
            Move::Report(_, report) => {
                self.extend_lease();
                self.report(report, now, random);
            }
            Move::Rescue { disconnected_lease } => self.rescue(disconnected_lease, now),
            Move::Expire => self.expire(now, random),
            Move::Refuse(problem) => self.refuse(problem, now),
            Move::Cancel(cause) => self.cancel(cause, now),
            Move::Retry(cause, at) => self.retry(cause, at, now),
            Move::PublishProgress => self.publish_progress(),
        }
    }

    /// Time to record. Clocks of processes differ and are set back, but the recorded times of a job must not
    /// decrease.
    fn no_earlier_time(&self, now: DateTime<Utc>) -> DateTime<Utc> {
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
        row.attempt_deadline_at = row.timeout_ms.map(|ms| later(clock, Duration::from_millis(ms.unsigned_abs())));
        self.started_attempt = Some(job_attempt::ActiveModel {
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
        let record = ChangeRecord::new(JobChangeKind::Started, "worker", Some(worker_id));
        self.transition(JobStatus::Running, record, ChangedColumns::Claim, now);
    }
}

fn wrong_status(status: JobStatus) -> Error {
    Error::WrongStatus { resource: "job", status: label(status) }
}
