//! Effects of the reports of a lease holder.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    job::{ChangedColumns, Job, LogLine, Progress, Report, later},
    record::ChangeRecord,
};
use crate::{
    entity::{job::JobStatus, job_attempt::AttemptOutcome, job_log},
    jobs::feed_records,
    pb::JobChangeKind,
};

impl Job {
    pub(super) fn report(&mut self, report: Report, now: DateTime<Utc>, random: f64) {
        let worker = self.row.worker_id.clone();
        match report {
            Report::Complete(result) => {
                let had_failures = self.row.failures > 0 || self.row.rescues > 0;
                self.end_attempt(AttemptOutcome::Succeeded, None, result.clone(), now);
                let row = &mut self.row;
                row.result = result;
                row.progress_percent = 100;
                row.completed_at = Some(now);
                row.error_message = None;
                row.error_traceback = None;
                row.error_code = None;
                let touched = if had_failures { ChangedColumns::Everything } else { ChangedColumns::Completion };
                let record = ChangeRecord::new(JobChangeKind::Completed, "worker", worker);
                self.transition(JobStatus::Completed, record, touched, now);
            }
            Report::Fail(failure) if self.row.cancel_requested_at.is_some() => {
                self.finish_cancelled(Some(failure), "worker", worker, now);
            }
            Report::Fail(failure) => {
                self.fail(AttemptOutcome::Failed, failure, "worker", worker, now, random);
            }
            Report::Release { .. } if self.row.cancel_requested_at.is_some() => {
                self.finish_cancelled(None, "worker", worker, now);
            }
            Report::Release { reason, snooze } => {
                let (outcome, kind) = match snooze {
                    Some(_) => (AttemptOutcome::Snoozed, JobChangeKind::Snoozed),
                    None => (AttemptOutcome::Released, JobChangeKind::Released),
                };
                self.end_attempt(outcome, None, None, now);
                // A released job keeps its position in the queue.
                let snoozed_until = snooze.map(|snooze| later(self.clock, snooze));
                let at = snoozed_until.or(self.row.scheduled_at).unwrap_or(now);
                let record = ChangeRecord::new(kind, "worker", worker).with_reason(reason);
                self.queue_again(at, record, now);
            }
            Report::AcknowledgeCancellation => self.finish_cancelled(None, "worker", worker, now),
            Report::Progress(progress, is_published) => {
                self.update_progress(progress, now);
                if is_published {
                    self.publish_progress();
                }
            }
            Report::Logs { lines, offset } => self.append_logs(lines, offset, now),
            Report::Heartbeat => {}
        }
    }

    pub(super) fn update_progress(&mut self, progress: Progress, now: DateTime<Utc>) {
        let row = &mut self.row;
        if let Some(step) = progress.step {
            row.current_step = Some(step);
        }
        row.items_processed = progress.processed.or(row.items_processed);
        row.items_total = progress.total.or(row.items_total);
        let counted = progress.processed.is_some() || progress.total.is_some();
        let items = row.items_processed.zip(row.items_total);
        let by_items = items.filter(|_| counted).map(|(processed, total)| {
            let percent = processed.min(total).saturating_mul(100) / total.max(1);
            i32::try_from(percent).unwrap_or(100).clamp(0, 100)
        });
        if let Some(percent) = progress.percent.or(by_items) {
            row.progress_percent = percent;
        }
        row.progress_at = Some(now);
        self.mark_changed(ChangedColumns::Progress);
    }

    pub(super) fn publish_progress(&mut self) {
        if self.row.status == JobStatus::Running {
            let change = feed_records::job_change(JobChangeKind::Progress, self.row.clone());
            self.changes.push(change);
        }
    }

    pub(super) fn append_logs(&mut self, lines: Vec<LogLine>, offset: Option<i64>, now: DateTime<Utc>) {
        let stored = self.attempt_lines.unwrap_or_default();
        let repeated = offset.map_or(0, |offset| stored - offset);
        let repeated = usize::try_from(repeated).unwrap_or_default();
        for line in lines.into_iter().skip(repeated) {
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
        self.mark_changed(ChangedColumns::Progress);
    }

    /// Extends the lease after a sign of life of the worker.
    pub(super) fn extend_lease(&mut self) {
        let lease = self.row.lease_ms.unwrap_or_default().unsigned_abs();
        self.row.lease_expires_at = Some(later(self.clock, Duration::from_millis(lease)));
        self.row.heartbeat_at = Some(self.clock);
        self.mark_changed(ChangedColumns::Lease);
    }
}
