//! Retention: deletes old finished jobs with their attempts, transitions and logs, a few at a time.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    Statement,
    sea_query::{Expr, ExprTrait, LockBehavior, LockType},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    db::Db,
    entity::job::{Column, Entity, JobStatus, Model},
    error::{Chain, Result},
    feed,
    jobs::{
        convert::STATUSES,
        feed_records,
        query::{filter::not_in_status, list::light_jobs},
    },
};

/// Interval between two rounds.
const ROUND_INTERVAL: Duration = Duration::from_mins(1);

/// Number of rounds between two full rounds. Other rounds start behind the last deleted job.
const FULL_ROUND_EVERY: u32 = 60;

/// Maximum number of jobs deleted by one transaction.
const MAX_JOBS_PER_TRANSACTION: u64 = 500;

/// Maximum number of log lines deleted by one transaction.
const MAX_LOG_LINES_PER_TRANSACTION: u64 = 10_000;

/// Pause between two transactions, for other writers of the database.
const TRANSACTION_PAUSE: Duration = Duration::from_millis(20);

const DELETE_LOG_LINES: &str = "\
    DELETE FROM job_logs WHERE id IN (SELECT id FROM job_logs WHERE job_id = $1 LIMIT $2)";

/// Retention periods of finished jobs. Zero keeps jobs forever.
#[derive(Debug, Clone, Copy)]
pub struct JobRetention {
    /// Retention of completed jobs.
    pub completed: Duration,
    /// Retention of failed jobs that are not dead letters.
    pub failed: Duration,
    /// Retention of dead letters.
    pub dead: Duration,
    /// Retention of cancelled jobs.
    pub cancelled: Duration,
}

/// Deletes jobs past their retention, periodically until shutdown.
pub async fn run(db: Db, retention: JobRetention, shutdown: CancellationToken) {
    let mut rounds = 0;
    let mut classes = retention_classes(retention);
    loop {
        for class in &mut classes {
            if rounds % FULL_ROUND_EVERY == 0 {
                class.resume_after = None;
            }
            match shutdown.run_until_cancelled(class.delete_expired(&db)).await {
                Some(Ok(0)) => {}
                Some(Ok(deleted)) => tracing::debug!(deleted, "deleted expired jobs"),
                Some(Err(error)) => {
                    let error = Chain(&error).to_string();
                    tracing::warn!(error, "failed to delete expired jobs; retrying in the next round");
                }
                None => return,
            }
        }
        rounds = (rounds + 1) % FULL_ROUND_EVERY;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(ROUND_INTERVAL) => {}
        }
    }
}

/// Deletes jobs past their retention once. Returns the number of deleted jobs.
pub async fn prune(db: &Db, retention: JobRetention) -> Result<u64> {
    let mut deleted = 0;
    for mut class in retention_classes(retention) {
        deleted += class.delete_expired(db).await?;
    }
    Ok(deleted)
}

/// Finished jobs with the same retention period.
struct RetentionClass {
    /// Condition selecting the jobs.
    condition: Condition,
    /// Column with the end time of the jobs.
    ended_at: Column,
    retention: TimeDelta,
    /// Position of the last deleted job. `None` before a full round.
    resume_after: Option<FinishedPosition>,
}

/// Position of a finished job: end time, then the id.
type FinishedPosition = (DateTime<Utc>, Uuid);

fn retention_classes(retention: JobRetention) -> Vec<RetentionClass> {
    let class = |status: JobStatus, ended_at: Column, is_dead: Option<bool>, retention: Duration| {
        let others: Vec<_> = STATUSES.into_iter().filter(|other| *other != status).collect();
        let condition = Condition::all().add(not_in_status(&others)).add_option(
            is_dead.map(|is_dead| if is_dead { Column::DeadAt.is_not_null() } else { Column::DeadAt.is_null() }),
        );
        RetentionClass {
            condition,
            ended_at,
            retention: TimeDelta::from_std(retention).unwrap_or(TimeDelta::MAX),
            resume_after: None,
        }
    };
    let classes = [
        class(JobStatus::Completed, Column::CompletedAt, None, retention.completed),
        class(JobStatus::Failed, Column::CompletedAt, Some(false), retention.failed),
        class(JobStatus::Failed, Column::DeadAt, Some(true), retention.dead),
        class(JobStatus::Cancelled, Column::CompletedAt, None, retention.cancelled),
    ];
    let is_limited = |class: &RetentionClass| !class.retention.is_zero();
    classes.into_iter().filter(is_limited).collect()
}

impl RetentionClass {
    async fn delete_expired(&mut self, db: &Db) -> Result<u64> {
        let Some(before) = crate::clock::for_retention().checked_sub_signed(self.retention) else {
            return Ok(0);
        };
        let mut deleted = 0;
        loop {
            let chunk = db.write(async |tx| self.delete_chunk(tx, before).await).await?;
            deleted += chunk.deleted;
            self.resume_after = chunk.last.or(self.resume_after);
            if chunk.is_last {
                return Ok(deleted);
            }
            tokio::time::sleep(TRANSACTION_PAUSE).await;
        }
    }

    /// Deletes up to 500 jobs, oldest first. Jobs locked by other transactions are skipped.
    async fn delete_chunk(&self, tx: &DatabaseTransaction, before: DateTime<Utc>) -> Result<DeletedChunk> {
        let mut jobs = light_jobs()
            .filter(self.condition.clone())
            .filter(self.ended_at.lt(before))
            .order_by_asc(self.ended_at)
            .order_by_asc(Column::Id)
            .limit(MAX_JOBS_PER_TRANSACTION)
            .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
        if let Some((ended_at, id)) = self.resume_after {
            let position = Expr::tuple([Expr::val(ended_at), Expr::val(id)]);
            let columns = Expr::tuple([self.ended_at.into_expr(), Column::Id.into_expr()]);
            jobs = jobs.filter(columns.gt(position));
        }
        let jobs = jobs.all(tx).await?;
        let fitting = jobs_within_line_limit(tx, &jobs).await?;
        let ids = fitting.iter().map(|job| job.id);
        // Attempts, transitions and logs are deleted by cascade.
        let delete = Entity::delete_many().filter(Column::Id.is_in(ids));
        let deleted = delete.exec(tx).await?.rows_affected;
        let changes = fitting.iter().map(feed_records::deleted_change).collect();
        feed::record(tx, feed_records::change_records(changes)).await?;
        let position = |job: &Model| Some((self.end_time(job)?, job.id));
        Ok(DeletedChunk {
            deleted,
            last: fitting.last().and_then(position),
            is_last: fitting.len() == jobs.len() && (jobs.len() as u64) < MAX_JOBS_PER_TRANSACTION,
        })
    }

    fn end_time(&self, job: &Model) -> Option<DateTime<Utc>> {
        if matches!(self.ended_at, Column::DeadAt) { job.dead_at } else { job.completed_at }
    }
}

/// Result of one transaction.
struct DeletedChunk {
    deleted: u64,
    /// Position of the last deleted job.
    last: Option<FinishedPosition>,
    /// True if no expired job is left.
    is_last: bool,
}

/// Leading jobs with logs small enough for one transaction. If the first job has more log lines, up to 10,000 of its
/// lines are deleted, and the job is returned only if no line is left.
async fn jobs_within_line_limit<'a>(tx: &DatabaseTransaction, jobs: &'a [Model]) -> Result<&'a [Model]> {
    let mut lines = 0;
    let fits = |job: &&Model| {
        lines += job.log_lines.unsigned_abs();
        lines <= MAX_LOG_LINES_PER_TRANSACTION
    };
    let count = jobs.iter().take_while(fits).count();
    if let (0, Some(first)) = (count, jobs.first()) {
        let values = [first.id.into(), MAX_LOG_LINES_PER_TRANSACTION.into()];
        let delete = Statement::from_sql_and_values(tx.get_database_backend(), DELETE_LOG_LINES, values);
        let deleted = tx.execute_raw(delete).await?.rows_affected();
        return Ok(&jobs[..usize::from(deleted < MAX_LOG_LINES_PER_TRANSACTION)]);
    }
    Ok(&jobs[..count])
}
