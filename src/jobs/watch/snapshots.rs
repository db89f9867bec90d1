//! Snapshots of jobs: what a watch of jobs may begin with.

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
    jobs::query::{filter::in_status, list::light},
    monitor::Feed,
    pb::{self, JobChangeKind},
    rpc::limits::snapshots::{Reservation, Snapshot, SnapshotMemory},
};

/// Number of jobs that are read together.
const PAGE: u64 = 1_000;

/// Number of jobs that are encoded together. A client that stops reading holds so many of them decoded.
const PIECE: usize = 8;

/// Largest number of jobs of a snapshot.
const JOBS: usize = 100_000;

/// Jobs that were queued or ran at one moment.
pub(crate) struct JobSnapshot {
    /// Position at which the feed goes on after the snapshot.
    pub start: Start,
    /// The jobs, oldest first: each item is an encoded `JobChanges`.
    pub jobs: Arc<Snapshot<Bytes>>,
}

/// The last snapshot of a filter, and when it was begun. It is kept for as long as somebody reads it.
type Last = Arc<tokio::sync::Mutex<Option<(Instant, Weak<JobSnapshot>)>>>;

/// Takes snapshots. Callers that ask for the same filter while one is being taken share the next one. Clones share all.
#[derive(Clone)]
pub(crate) struct Snapshots {
    db: Db,
    feed: Feed,
    memory: SnapshotMemory,
    /// By encoded filter, while there are callers.
    by_filter: Arc<Mutex<HashMap<Vec<u8>, Last>>>,
}

impl Snapshots {
    /// Snapshots of the jobs of this database.
    pub(crate) fn new(db: Db, feed: Feed, memory: SnapshotMemory) -> Self {
        Self {
            db,
            feed,
            memory,
            by_filter: Arc::default(),
        }
    }

    /// A snapshot of the jobs that match, of a moment after this is called.
    pub(crate) async fn take(&self, filter: &pb::JobFilter) -> Result<Arc<JobSnapshot>> {
        let asked = Instant::now();
        let condition = filter.condition(self.db.backend(), entity::now())?;
        let entry = Entry::new(self, filter.encode_to_vec());
        let mut last = entry.last.lock().await;
        if let Some((begun, snapshot)) = &*last
            && *begun >= asked
            && let Some(snapshot) = snapshot.upgrade()
        {
            return Ok(snapshot);
        }
        let begun = Instant::now();
        let snapshot = Arc::new(self.read(condition).await?);
        *last = Some((begun, Arc::downgrade(&snapshot)));
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

    fn by_filter(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Last>> {
        let by_filter = self.by_filter.lock();
        by_filter
    }
}

/// A caller's place among those with the same filter.
struct Entry<'a> {
    snapshots: &'a Snapshots,
    filter: Vec<u8>,
    last: Last,
}

impl<'a> Entry<'a> {
    fn new(snapshots: &'a Snapshots, filter: Vec<u8>) -> Self {
        let last = snapshots
            .by_filter()
            .entry(filter.clone())
            .or_default()
            .clone();
        Self {
            snapshots,
            filter,
            last,
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut by_filter = self.snapshots.by_filter();
        // The map has one, and this caller has one.
        if Arc::strong_count(&self.last) <= 2 {
            by_filter.remove(&self.filter);
        }
    }
}

/// The jobs that are queued or run and of which this is true, oldest first.
async fn unfinished(
    tx: &DatabaseTransaction,
    condition: Condition,
    reservation: &mut Reservation,
) -> Result<Vec<Bytes>> {
    let all = light()
        .filter(condition)
        .filter(in_status(&[JobStatus::Queued, JobStatus::Running]))
        .order_by_asc(Column::CreatedAt)
        .order_by_asc(Column::Id)
        .limit(PAGE);
    let (mut pieces, mut jobs) = (Vec::new(), 0);
    let mut page = all.clone().all(tx).await?;
    while let Some(last) = page.last() {
        jobs += page.len();
        if jobs > JOBS {
            let problem = format!("would have more than {JOBS} jobs; narrow the filter");
            return Err(Error::invalid("snapshot", problem));
        }
        let columns = Expr::tuple([Column::CreatedAt.into_expr(), Column::Id.into_expr()]);
        let place = Expr::tuple([Expr::val(last.created_at), Expr::val(last.id)]);
        let mut rest = page.into_iter().map(existing).peekable();
        while rest.peek().is_some() {
            let changes = rest.by_ref().take(PIECE).collect();
            let piece = pb::JobChanges { changes }.encode_to_vec();
            reservation.grow(piece.len() as u64)?;
            pieces.push(piece.into());
        }
        page = all.clone().filter(columns.gt(place)).all(tx).await?;
    }
    Ok(pieces)
}

/// The change that tells of a job that was there before.
pub(crate) fn existing(job: job::Model) -> pb::JobChange {
    pb::JobChange {
        kind: JobChangeKind::Existing.into(),
        job: Some(job.into()),
        ..Default::default()
    }
}
