//! Snapshots of unfinished jobs, for the start of watches.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Instant,
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use sea_orm::{
    ColumnTrait, Condition, DatabaseTransaction, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Expr, ExprTrait},
};

use crate::{
    db::Db,
    entity::{
        self,
        job::{self, Column, JobStatus},
    },
    error::{Error, Result},
    feed::Start,
    jobs::query::{filter::in_status, list::light_jobs},
    monitor::Feed,
    pb::{self, JobChangeKind},
    rpc::limits::snapshots::{Reservation, Snapshot, SnapshotMemory},
};

/// Number of jobs per query.
const JOBS_PER_QUERY: u64 = 1_000;

/// Number of jobs per encoded piece. A client that stops reading holds one decoded piece.
const JOBS_PER_PIECE: usize = 8;

/// Maximum number of jobs of a snapshot.
const MAX_JOBS: usize = 100_000;

/// Queued and running jobs at one moment.
pub(crate) struct JobSnapshot {
    /// Feed position at which the watch continues.
    pub start: Start,
    /// Jobs, oldest first. Each item is an encoded `JobChanges`.
    pub jobs: Arc<Snapshot<Bytes>>,
}

/// Last snapshot of a filter with its start time, kept while in use.
type LastSnapshot = Arc<tokio::sync::Mutex<Option<(Instant, Weak<JobSnapshot>)>>>;

/// Takes snapshots. Concurrent callers with the same filter share a snapshot. Clones share the state.
#[derive(Clone)]
pub(crate) struct Snapshots {
    db: Db,
    feed: Feed,
    memory: SnapshotMemory,
    /// Last snapshots by encoded filter, while callers exist.
    by_filter: Arc<Mutex<HashMap<Vec<u8>, LastSnapshot>>>,
}

impl Snapshots {
    /// Creates the snapshots of a database.
    pub(crate) fn new(db: Db, feed: Feed, memory: SnapshotMemory) -> Self {
        Self { db, feed, memory, by_filter: Arc::default() }
    }

    /// Snapshot of the matching jobs, taken after the call.
    pub(crate) async fn take(&self, filter: &pb::JobFilter) -> Result<Arc<JobSnapshot>> {
        let called_at = Instant::now();
        let condition = filter.condition(self.db.backend(), entity::now())?;
        let entry = Entry::new(self, filter.encode_to_vec());
        let mut last = entry.last.lock().await;
        if let Some((started_at, snapshot)) = &*last
            && *started_at >= called_at
            && let Some(snapshot) = snapshot.upgrade()
        {
            return Ok(snapshot);
        }
        let started_at = Instant::now();
        let snapshot = Arc::new(self.read(condition).await?);
        *last = Some((started_at, Arc::downgrade(&snapshot)));
        Ok(snapshot)
    }

    async fn read(&self, condition: Condition) -> Result<JobSnapshot> {
        let scan = self.db.scan().await?;
        let tx = scan.snapshot().await?;
        let start = self.feed.now_in(&tx).await?;
        let mut reservation = self.memory.reserve();
        let pieces = unfinished(&tx, condition, &mut reservation).await?;
        tx.commit().await?;
        drop(scan);
        let jobs = self.memory.store(pieces, reservation);
        Ok(JobSnapshot { start, jobs })
    }

    fn by_filter(&self) -> MutexGuard<'_, HashMap<Vec<u8>, LastSnapshot>> {
        self.by_filter.lock()
    }
}

/// Entry of a caller in the map of filters.
struct Entry<'a> {
    snapshots: &'a Snapshots,
    filter: Vec<u8>,
    last: LastSnapshot,
}

impl<'a> Entry<'a> {
    fn new(snapshots: &'a Snapshots, filter: Vec<u8>) -> Self {
        let last = snapshots.by_filter().entry(filter.clone()).or_default().clone();
        Self { snapshots, filter, last }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut by_filter = self.snapshots.by_filter();
        // One reference belongs to the map, and another to this caller.
        if Arc::strong_count(&self.last) <= 2 {
            by_filter.remove(&self.filter);
        }
    }
}

/// Reads the queued and running jobs matching a condition, oldest first.
async fn unfinished(
    tx: &DatabaseTransaction,
    condition: Condition,
    reservation: &mut Reservation,
) -> Result<Vec<Bytes>> {
    let select = light_jobs()
        .filter(condition)
        .filter(in_status(&[JobStatus::Queued, JobStatus::Running]))
        .order_by_asc(Column::CreatedAt)
        .order_by_asc(Column::Id)
        .limit(JOBS_PER_QUERY);
    let (mut pieces, mut jobs) = (Vec::new(), 0);
    let mut page = select.clone().all(tx).await?;
    while let Some(last) = page.last() {
        jobs += page.len();
        if jobs > MAX_JOBS {
            let problem = format!("would have more than {MAX_JOBS} jobs; narrow the filter");
            return Err(Error::invalid("snapshot", problem));
        }
        let columns = Expr::tuple([Column::CreatedAt.into_expr(), Column::Id.into_expr()]);
        let position = Expr::tuple([Expr::val(last.created_at), Expr::val(last.id)]);
        let mut rest = page.into_iter().map(existing_change).peekable();
        while rest.peek().is_some() {
            let changes = rest.by_ref().take(JOBS_PER_PIECE).collect();
            let piece = pb::JobChanges { changes }.encode_to_vec();
            reservation.grow(piece.len() as u64)?;
            pieces.push(piece.into());
        }
        page = select.clone().filter(columns.gt(position)).all(tx).await?;
    }
    Ok(pieces)
}

/// Change introducing a job that existed before the watch.
pub(crate) fn existing_change(job: job::Model) -> pb::JobChange {
    pb::JobChange { kind: JobChangeKind::Existing.into(), job: Some(job.into()), ..Default::default() }
}
