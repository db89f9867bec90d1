//! Forgetting: jobs that have been finished for long enough, a few at a time, with all that is known of them.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter,
    QueryOrder, QuerySelect, Statement,
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
        query::{filter::is_not, list::light},
    },
};

/// How often to look.
const PERIOD: Duration = Duration::from_mins(1);

/// How often to look at all. In between, what was looked at before is passed over.
const THOROUGH: u32 = 60;

/// How many jobs one transaction deletes.
const JOBS: u64 = 500;

/// How many lines of their logs it deletes.
const LINES: u64 = 10_000;

/// How long writers have the database to themselves between two of them.
const PAUSE: Duration = Duration::from_millis(20);

const DELETE_LINES: &str = "\
    DELETE FROM job_logs WHERE id IN (SELECT id FROM job_logs WHERE job_id = $1 LIMIT $2)";

/// How long jobs are kept after they have come to their end. Zero means for ever.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Those that have completed.
    pub completed: Duration,
    /// Those that have failed and are no dead letters.
    pub failed: Duration,
    /// Dead letters.
    pub dead: Duration,
    /// Those that were cancelled.
    pub cancelled: Duration,
}

/// Deletes jobs that are older than they are kept, again and again, until shutdown.
pub async fn run(db: Db, kept: Kept, shutdown: CancellationToken) {
    let mut rounds = 0;
    let mut kinds = kinds(kept);
    loop {
        for kind in &mut kinds {
            if rounds % THOROUGH == 0 {
                kind.since = None;
            }
            match shutdown.run_until_cancelled(kind.prune(&db)).await {
                Some(Ok(0)) => {}
                Some(Ok(deleted)) => tracing::debug!(deleted, "deleted old jobs"),
                Some(Err(error)) => {
                    let error = Chain(&error).to_string();
                    tracing::warn!(error, "old jobs could not be deleted; it is tried again");
                }
                None => return,
            }
        }
        rounds = (rounds + 1) % THOROUGH;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Deletes jobs that are older than they are kept. Returns how many.
pub async fn prune(db: &Db, kept: Kept) -> Result<u64> {
    let mut all = 0;
    for mut kind in kinds(kept) {
        all += kind.prune(db).await?;
    }
    Ok(all)
}

/// Jobs that are kept for the same time.
struct Kind {
    /// Which those are.
    is_one: Condition,
    /// When they came to their end.
    ended_at: Column,
    kept: TimeDelta,
    /// Up to where they were deleted before.
    since: Option<Place>,
}

/// When a job came to its end, and which one it was.
type Place = (DateTime<Utc>, Uuid);

fn kinds(kept: Kept) -> Vec<Kind> {
    let kind = |status: JobStatus, ended_at: Column, is_dead: Option<bool>, kept: Duration| {
        let others: Vec<_> = STATUSES.into_iter().filter(|of| *of != status).collect();
        let is_one = Condition::all()
            .add(is_not(&others))
            .add_option(is_dead.map(|is_dead| {
                if is_dead {
                    Column::DeadAt.is_not_null()
                } else {
                    Column::DeadAt.is_null()
                }
            }));
        Kind {
            is_one,
            ended_at,
            kept: TimeDelta::from_std(kept).unwrap_or(TimeDelta::MAX),
            since: None,
        }
    };
    let all = [
        kind(
            JobStatus::Completed,
            Column::CompletedAt,
            None,
            kept.completed,
        ),
        kind(
            JobStatus::Failed,
            Column::CompletedAt,
            Some(false),
            kept.failed,
        ),
        kind(JobStatus::Failed, Column::DeadAt, Some(true), kept.dead),
        kind(
            JobStatus::Cancelled,
            Column::CompletedAt,
            None,
            kept.cancelled,
        ),
    ];
    let is_limited = |kind: &Kind| !kind.kept.is_zero();
    all.into_iter().filter(is_limited).collect()
}

impl Kind {
    async fn prune(&mut self, db: &Db) -> Result<u64> {
        let Some(before) = crate::clock::for_retention().checked_sub_signed(self.kept) else {
            return Ok(0);
        };
        let mut all = 0;
        loop {
            let chunk = db.write(async |tx| self.chunk(tx, before).await).await?;
            all += chunk.deleted;
            self.since = chunk.last.or(self.since);
            if chunk.is_last {
                return Ok(all);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Deletes some of them, the oldest first. Those that somebody else has locked are passed over.
    async fn chunk(&self, tx: &DatabaseTransaction, before: DateTime<Utc>) -> Result<Chunk> {
        let mut jobs = light()
            .filter(self.is_one.clone())
            .filter(self.ended_at.lt(before))
            .order_by_asc(self.ended_at)
            .order_by_asc(Column::Id)
            .limit(JOBS)
            .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
        if let Some((ended_at, id)) = self.since {
            let place = Expr::tuple([Expr::val(ended_at), Expr::val(id)]);
            let columns = Expr::tuple([self.ended_at.into_expr(), Column::Id.into_expr()]);
            jobs = jobs.filter(columns.gt(place));
        }
        let jobs = jobs.all(tx).await?;
        let fitting = fitting(tx, &jobs).await?;
        let ids = fitting.iter().map(|job| job.id);
        // Their attempts, transitions and logs go with them.
        let gone = Entity::delete_many().filter(Column::Id.is_in(ids));
        let deleted = gone.exec(tx).await?.rows_affected;
        let changes = fitting.iter().map(feed_records::deleted).collect();
        feed::record(tx, feed_records::records(changes)).await?;
        let place = |job: &Model| Some((self.ended(job)?, job.id));
        Ok(Chunk {
            deleted,
            last: fitting.last().and_then(place),
            is_last: fitting.len() == jobs.len() && (jobs.len() as u64) < JOBS,
        })
    }

    fn ended(&self, job: &Model) -> Option<DateTime<Utc>> {
        if matches!(self.ended_at, Column::DeadAt) {
            job.dead_at
        } else {
            job.completed_at
        }
    }
}

/// What one transaction did.
struct Chunk {
    deleted: u64,
    /// The last job that it deleted.
    last: Option<Place>,
    /// Whether there is nothing left.
    is_last: bool,
}

/// The first of the jobs, whose logs one transaction can delete. If the first one has more, some of its lines
/// are deleted, and it is left for the next transaction unless these were all.
async fn fitting<'a>(tx: &DatabaseTransaction, jobs: &'a [Model]) -> Result<&'a [Model]> {
    let mut lines = 0;
    let fits = |job: &&Model| {
        lines += job.log_lines.unsigned_abs();
        lines <= LINES
    };
    let count = jobs.iter().take_while(fits).count();
    if let (0, Some(first)) = (count, jobs.first()) {
        let values = [first.id.into(), LINES.into()];
        let delete =
            Statement::from_sql_and_values(tx.get_database_backend(), DELETE_LINES, values);
        let deleted = tx.execute_raw(delete).await?.rows_affected();
        return Ok(&jobs[..usize::from(deleted < LINES)]);
    }
    Ok(&jobs[..count])
}
