//! Deletion of jobs with their attempts, transitions and logs.

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

/// Maximum number of tries to delete a concurrently changed job.
const MAX_TRIES: usize = 5;

/// Deletes a job. A running job is refused.
pub(crate) async fn delete_job(db: &Db, id: Uuid) -> Result<()> {
    let mut tries = 1;
    loop {
        match try_delete(db, id).await {
            Err(Error::Contended) if tries < MAX_TRIES => tries += 1,
            result => return result,
        }
    }
}

async fn try_delete(db: &Db, id: Uuid) -> Result<()> {
    db.by_key()
        .write(async |tx| {
            let mut jobs = apply::lock(tx, &[id], &Types::default()).await?;
            let job = crate::db::row::require(jobs.remove(&id), "job", id)?;
            if job.row.status == JobStatus::Running {
                return Err(Error::WrongStatus { resource: "job", status: label(job.row.status) });
            }
            delete_locked(tx, vec![job.row]).await
        })
        .await
}

/// Deletes locked jobs and records the deletion in the feed.
pub(crate) async fn delete_locked(tx: &DatabaseTransaction, jobs: Vec<crate::entity::job::Model>) -> Result<()> {
    let ids = jobs.iter().map(|job| job.id);
    let deleted = Entity::delete_many().filter(Column::Id.is_in(ids));
    deleted.exec(tx).await?;
    let changes = jobs.iter().map(feed_records::deleted_change).collect();
    feed::record(tx, feed_records::change_records(changes)).await
}
