//! Bulk cancellation, retry and deletion of jobs, in chunks.

use std::collections::{BTreeMap, HashSet};

use futures_util::{TryStreamExt, future::join_all};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use uuid::Uuid;

use super::{apply, delete, writer::JobWriter};
use crate::{
    db::Db,
    entity::job::{Column, Entity, JobStatus},
    error::{Error, Result},
    jobs::{
        state::{Cause, Move},
        types::Types,
    },
    pb,
};

/// Number of jobs per chunk.
const JOBS_PER_CHUNK: usize = 200;

/// Maximum number of tries of a chunk in conflict with other transactions.
const MAX_TRIES: usize = 5;

/// Action on all matching jobs.
#[derive(Debug, Clone)]
pub(crate) enum BulkAction {
    Cancel(Cause),
    Retry(Cause),
    Delete,
}

impl BulkAction {
    /// Returns true if the action applies to a job in a status.
    fn applies_to(&self, status: JobStatus) -> bool {
        match self {
            Self::Cancel(_) => matches!(status, JobStatus::Queued | JobStatus::Running),
            Self::Retry(_) => matches!(status, JobStatus::Failed | JobStatus::Cancelled),
            Self::Delete => status != JobStatus::Running,
        }
    }
}

/// Action on the jobs matching a condition.
#[derive(Debug)]
pub(crate) struct BulkMove {
    condition: Condition,
    action: BulkAction,
}

/// Counts of moved and unmoved jobs.
#[derive(Debug, Default)]
struct BulkCounts {
    moved: i64,
    /// Running jobs with a newly requested cancellation, included in `moved`.
    requested: i64,
    /// Jobs not retried because another job holds their unique key.
    key_held: i64,
    /// Unmoved jobs by the protobuf number of their status.
    not_moved: BTreeMap<i32, i64>,
}

impl BulkMove {
    /// Validates a request. `condition` is the condition of its filter; an empty condition requires `all`.
    pub(crate) fn new(condition: Condition, all: bool, action: BulkAction) -> Result<Self> {
        if condition.is_empty() && !all {
            let problem = "must not be empty unless `all` is set";
            return Err(Error::invalid("filter", problem));
        }
        if all && !condition.is_empty() {
            let problem = "must not be set together with a filter";
            return Err(Error::invalid("all", problem));
        }
        Ok(Self { condition, action })
    }

    /// Applies the action to the jobs matching now, oldest first. With `dry_run`, jobs are only counted.
    pub(crate) async fn run(self, db: &Db, writer: &JobWriter, dry_run: bool) -> Result<pb::MoveJobsResponse> {
        let mut counts = BulkCounts::default();
        let scan = db.scan().await?;
        if dry_run {
            let statuses: Vec<(JobStatus, i64)> = Entity::find()
                .filter(self.condition)
                .select_only()
                .column(Column::Status)
                .column_as(Column::Id.count(), "jobs")
                .group_by(Column::Status)
                .into_tuple()
                .all(scan.reader())
                .await?;
            for (status, jobs) in statuses {
                counts.add(status, self.action.applies_to(status), jobs);
            }
            return Ok(counts.into());
        }
        let ids = Entity::find()
            .filter(self.condition.clone())
            .select_only()
            .column(Column::Id)
            .order_by_asc(Column::CreatedAt)
            .order_by_asc(Column::Id)
            .into_tuple::<Uuid>()
            .stream(scan.reader())
            .await?;
        let ids: Vec<Uuid> = ids.try_collect().await?;
        drop(scan);
        for chunk in ids.chunks(JOBS_PER_CHUNK) {
            match &self.action {
                BulkAction::Cancel(cause) => {
                    let cancel = || Move::Cancel(cause.clone());
                    self.move_chunk(db, writer, chunk, cancel, &mut counts).await?;
                }
                BulkAction::Retry(cause) => {
                    let retry = || Move::Retry(cause.clone(), None);
                    self.move_chunk(db, writer, chunk, retry, &mut counts).await?;
                }
                BulkAction::Delete => self.delete_chunk(db, chunk, &mut counts).await?,
            }
        }
        Ok(counts.into())
    }

    /// Moves a chunk of jobs. Concurrent moves share transactions.
    async fn move_chunk(
        &self,
        db: &Db,
        writer: &JobWriter,
        ids: &[Uuid],
        job_move: impl Fn() -> Move,
        counts: &mut BulkCounts,
    ) -> Result<()> {
        // Jobs may have changed since they matched.
        let matching: Vec<(Uuid, JobStatus)> = Entity::find()
            .select_only()
            .columns([Column::Id, Column::Status])
            .filter(self.condition.clone())
            .filter(Column::Id.is_in(ids.iter().copied()))
            .into_tuple()
            .all(db.reader())
            .await?;
        let (movable, unmovable): (Vec<_>, Vec<_>) =
            matching.into_iter().partition(|(_, status)| self.action.applies_to(*status));
        for (_, status) in unmovable {
            counts.add(status, false, 1);
        }
        let moves = movable.iter().map(|(id, _)| writer.apply_move(*id, job_move()));
        for ((_, previous_status), result) in movable.iter().zip(join_all(moves).await) {
            match result {
                Ok(job) => {
                    counts.moved += 1;
                    counts.requested += i64::from(job.status == JobStatus::Running);
                }
                Err(Error::KeyHeld { .. }) => counts.key_held += 1,
                Err(Error::WrongStatus { .. } | Error::NotFound { .. }) => {
                    counts.add(*previous_status, false, 1);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn delete_chunk(&self, db: &Db, ids: &[Uuid], counts: &mut BulkCounts) -> Result<()> {
        let (db, mut tries) = (db.by_key(), 1);
        let (deleted_count, unmovable) = loop {
            let result = db
                .write(async |tx| {
                    let jobs = apply::lock(tx, ids, &Types::default()).await?;
                    let matching: Vec<Uuid> = Entity::find()
                        .select_only()
                        .column(Column::Id)
                        .filter(self.condition.clone())
                        .filter(Column::Id.is_in(ids.iter().copied()))
                        .into_tuple()
                        .all(tx)
                        .await?;
                    let matching: HashSet<_> = matching.into_iter().collect();
                    let rows = jobs.into_values().map(|job| job.row);
                    let (mut deletable, unmovable): (Vec<_>, Vec<_>) = rows
                        .filter(|row| matching.contains(&row.id))
                        .partition(|row| self.action.applies_to(row.status));
                    deletable.sort_unstable_by_key(|row| row.id);
                    let count = i64::try_from(deletable.len()).unwrap_or(i64::MAX);
                    delete::delete_locked(tx, deletable).await?;
                    Ok((count, unmovable))
                })
                .await;
            match result {
                Err(Error::Contended) if tries < MAX_TRIES => tries += 1,
                result => break result?,
            }
        };
        counts.moved += deleted_count;
        for row in unmovable {
            counts.add(row.status, false, 1);
        }
        Ok(())
    }
}

impl BulkCounts {
    fn add(&mut self, status: JobStatus, moved: bool, jobs: i64) {
        if moved {
            self.moved += jobs;
            // Only cancellation applies to running jobs.
            self.requested += if status == JobStatus::Running { jobs } else { 0 };
        } else {
            let status = pb::JobStatus::from(status).into();
            *self.not_moved.entry(status).or_default() += jobs;
        }
    }
}

impl From<BulkCounts> for pb::MoveJobsResponse {
    fn from(counts: BulkCounts) -> Self {
        let not_moved: i64 = counts.not_moved.values().sum();
        Self {
            matched: counts.moved + not_moved + counts.key_held,
            moved: counts.moved,
            requested: counts.requested,
            not_moved: counts.not_moved.into_iter().map(|(status, jobs)| pb::JobStatusCount { status, jobs }).collect(),
            unique_key_held: counts.key_held,
        }
    }
}
