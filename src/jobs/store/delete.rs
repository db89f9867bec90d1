//! Deleting jobs, with their attempts, transitions and logs.

use sea_orm::{ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter};
use uuid::Uuid;

use super::apply;
use crate::{
    db::Db,
    entity::job::{Column, Entity, JobStatus},
    error::{Error, Result},
    feed,
    jobs::{feed_records, state::label, types::Types},
};

/// How often it is tried to delete what was just changed by others.
const TRIES: usize = 5;

/// Deletes a job that does not run.
pub(crate) async fn delete(db: &Db, id: Uuid) -> Result<()> {
    let mut tries = 1;
    loop {
        match try_to_delete(db, id).await {
            Err(Error::Contended) if tries < TRIES => tries += 1,
            deleted => return deleted,
        }
    }
}

async fn try_to_delete(db: &Db, id: Uuid) -> Result<()> {
    db.by_key()
        .write(async |tx| {
            let mut jobs = apply::lock(tx, &[id], &Types::default()).await?;
            let job = crate::db::row::require(jobs.remove(&id), "job", id)?;
            if job.row.status == JobStatus::Running {
                return Err(Error::WrongStatus {
                    resource: "job",
                    status: label(job.row.status),
                });
            }
            delete_locked(tx, vec![job.row]).await
        })
        .await
}

/// Deletes jobs that are locked.
pub(crate) async fn delete_locked(
    tx: &DatabaseTransaction,
    jobs: Vec<crate::entity::job::Model>,
) -> Result<()> {
    let ids = jobs.iter().map(|job| job.id);
    let deleted = Entity::delete_many().filter(Column::Id.is_in(ids));
    deleted.exec(tx).await?;
    let changes = jobs.iter().map(feed_records::deleted).collect();
    feed::record(tx, feed_records::records(changes)).await
}
