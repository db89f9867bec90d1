//! Cancelling, retrying and deleting many jobs, in chunks.

use std::collections::{BTreeMap, HashSet};

use futures_util::{TryStreamExt, future::join_all};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use uuid::Uuid;

use super::{apply, delete, writer::Desk};
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

/// How many jobs are moved at a time.
const CHUNK: usize = 200;

/// How often a chunk is tried that was chosen to give way to others.
const TRIES: usize = 5;

/// What is to become of jobs.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    Cancelled(Cause),
    Retried(Cause),
    Deleted,
}

impl Wanted {
    /// Whether it can become of a job in this status.
    fn from(&self, status: JobStatus) -> bool {
        match self {
            Self::Cancelled(_) => matches!(status, JobStatus::Queued | JobStatus::Running),
            Self::Retried(_) => matches!(status, JobStatus::Failed | JobStatus::Cancelled),
            Self::Deleted => status != JobStatus::Running,
        }
    }
}

/// Jobs that are to be moved.
#[derive(Debug)]
pub(crate) struct Bulk {
    condition: Condition,
    wanted: Wanted,
}

/// What became of jobs.
#[derive(Debug, Default)]
struct Tally {
    moved: i64,
    requested: i64,
    key_held: i64,
    /// How many were not, by the number of their status on the wire.
    not_moved: BTreeMap<i32, i64>,
}

impl Bulk {
    /// Checks what a request says, of which `condition` is what its filter matches.
    pub(crate) fn new(condition: Condition, all: bool, wanted: Wanted) -> Result<Self> {
        if condition.is_empty() && !all {
            let problem = "must not be empty unless `all` is set";
            return Err(Error::invalid("filter", problem));
        }
        if all && !condition.is_empty() {
            let problem = "must not be set together with a filter";
            return Err(Error::invalid("all", problem));
        }
        Ok(Self { condition, wanted })
    }

    /// Moves the jobs that match now, oldest first; or tells how many would be moved.
    pub(crate) async fn run(self, db: &Db, desk: &Desk, dry: bool) -> Result<pb::MoveJobsResponse> {
        let mut tally = Tally::default();
        let scan = db.scan().await?;
        if dry {
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
                tally.add(status, self.wanted.from(status), jobs);
            }
            return Ok(tally.into());
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
        for ids in ids.chunks(CHUNK) {
            match &self.wanted {
                Wanted::Cancelled(cause) => {
                    let what = || Move::Cancel(cause.clone());
                    self.move_all(db, desk, ids, what, &mut tally).await?;
                }
                Wanted::Retried(cause) => {
                    let what = || Move::Retry(cause.clone(), None);
                    self.move_all(db, desk, ids, what, &mut tally).await?;
                }
                Wanted::Deleted => self.delete(db, ids, &mut tally).await?,
            }
        }
        Ok(tally.into())
    }

    /// Those that are moved at the same time share transactions.
    async fn move_all(
        &self,
        db: &Db,
        desk: &Desk,
        ids: &[Uuid],
        what: impl Fn() -> Move,
        tally: &mut Tally,
    ) -> Result<()> {
        // Others may have changed them since they matched.
        let still: Vec<(Uuid, JobStatus)> = Entity::find()
            .select_only()
            .columns([Column::Id, Column::Status])
            .filter(self.condition.clone())
            .filter(Column::Id.is_in(ids.iter().copied()))
            .into_tuple()
            .all(db.reader())
            .await?;
        let (may, may_not): (Vec<_>, Vec<_>) = still
            .into_iter()
            .partition(|(_, status)| self.wanted.from(*status));
        for (_, status) in may_not {
            tally.add(status, false, 1);
        }
        let moves = may.iter().map(|(id, _)| desk.carry_out(*id, what()));
        for ((_, before), moved) in may.iter().zip(join_all(moves).await) {
            match moved {
                Ok(job) => {
                    tally.moved += 1;
                    tally.requested += i64::from(job.status == JobStatus::Running);
                }
                Err(Error::KeyHeld { .. }) => tally.key_held += 1,
                Err(Error::WrongStatus { .. } | Error::NotFound { .. }) => {
                    tally.add(*before, false, 1);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn delete(&self, db: &Db, ids: &[Uuid], tally: &mut Tally) -> Result<()> {
        let (db, mut tries) = (db.by_key(), 1);
        let deleted = loop {
            let deleted = db
                .write(async |tx| {
                    let jobs = apply::lock(tx, ids, &Types::default()).await?;
                    let still: Vec<Uuid> = Entity::find()
                        .select_only()
                        .column(Column::Id)
                        .filter(self.condition.clone())
                        .filter(Column::Id.is_in(ids.iter().copied()))
                        .into_tuple()
                        .all(tx)
                        .await?;
                    let still: HashSet<_> = still.into_iter().collect();
                    let rows = jobs.into_values().map(|job| job.row);
                    let (mut gone, stay): (Vec<_>, Vec<_>) = rows
                        .filter(|row| still.contains(&row.id))
                        .partition(|row| self.wanted.from(row.status));
                    gone.sort_unstable_by_key(|row| row.id);
                    let count = i64::try_from(gone.len()).unwrap_or(i64::MAX);
                    delete::delete_locked(tx, gone).await?;
                    Ok((count, stay))
                })
                .await;
            match deleted {
                Err(Error::Contended) if tries < TRIES => tries += 1,
                deleted => break deleted?,
            }
        };
        let (count, stay) = deleted;
        tally.moved += count;
        for row in stay {
            tally.add(row.status, false, 1);
        }
        Ok(())
    }
}

impl Tally {
    fn add(&mut self, status: JobStatus, moved: bool, jobs: i64) {
        if moved {
            self.moved += jobs;
            // Only who wants them cancelled moves jobs that run.
            self.requested += if status == JobStatus::Running {
                jobs
            } else {
                0
            };
        } else {
            let status = pb::JobStatus::from(status).into();
            *self.not_moved.entry(status).or_default() += jobs;
        }
    }
}

impl From<Tally> for pb::MoveJobsResponse {
    fn from(tally: Tally) -> Self {
        let not_moved: i64 = tally.not_moved.values().sum();
        Self {
            matched: tally.moved + not_moved + tally.key_held,
            moved: tally.moved,
            requested: tally.requested,
            not_moved: tally
                .not_moved
                .into_iter()
                .map(|(status, jobs)| pb::JobStatusCount { status, jobs })
                .collect(),
            unique_key_held: tally.key_held,
        }
    }
}
