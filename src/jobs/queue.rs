//! Shared state of the job services, and the background loops of the queue.

use std::sync::Arc;

use sea_orm::DbBackend;
use tokio_util::sync::CancellationToken;

use super::{
    dispatch::{Dispatcher, reaper},
    schedules::Ticker,
    store::{create::Creator, writer::JobWriter},
    types::LiveTypes,
    wakeups::Wakeups,
    worker::{assignments::Assignments, progress::ProgressThrottle},
};
use crate::{batch::group_commit::GroupCommit, db::Db, error::Result, feed::Position, monitor::Feed};

/// Maximum number of jobs created by one transaction, unless a single call creates more.
const MAX_JOBS_PER_TRANSACTION: usize = 2_000;

/// Number of concurrent transactions creating jobs on PostgreSQL.
const CREATE_CONCURRENCY: usize = 2;

/// Job queue of this process. Clones share the state.
#[derive(Debug, Clone)]
pub struct Queue {
    pub(super) db: Db,
    pub(super) types: LiveTypes,
    pub(super) wakeups: Wakeups,
    pub(super) creator: GroupCommit<Creator>,
    pub(super) writer: JobWriter,
    pub(super) dispatcher: Dispatcher,
    pub(super) assignments: Assignments,
    pub(super) throttle: ProgressThrottle,
    shutdown: CancellationToken,
}

impl Queue {
    /// Creates the queue of a database. Workers receive no jobs before [`start`](Self::start).
    pub fn new(db: Db, shutdown: CancellationToken) -> Self {
        let (types, wakeups) = (LiveTypes::new(db.clone()), Wakeups::default());
        let by_key = db.by_key();
        let writer = JobWriter::start(&by_key, &types, &wakeups);
        let dispatcher =
            Dispatcher::new(by_key.clone(), types.clone(), wakeups.clone(), writer.clone(), shutdown.clone());
        let creator = Creator { db: by_key, wakeups: wakeups.clone() };
        let concurrency = if db.backend() == DbBackend::Postgres { CREATE_CONCURRENCY } else { 1 };
        let creator = GroupCommit::start(Arc::new(creator), concurrency, MAX_JOBS_PER_TRANSACTION, shutdown.clone());
        Self {
            db,
            types,
            wakeups,
            creator,
            writer,
            dispatcher,
            assignments: Assignments::default(),
            throttle: ProgressThrottle::default(),
            shutdown,
        }
    }

    /// Reads the settings of job types, required before the first job.
    pub async fn open(&self) -> Result<()> {
        self.types.reload().await
    }

    /// Starts the background loops, reading the feed from a position.
    pub fn start(self, feed: Feed, from: Position) {
        let ticker = Ticker::new(self.db.clone(), self.types.clone(), self.wakeups.clone());
        let Self { db, types, wakeups, writer, dispatcher, assignments, throttle, shutdown, .. } = self;
        tokio::spawn(dispatcher.run());
        tokio::spawn(types.follow(feed.clone(), from, shutdown.clone()));
        tokio::spawn(ticker.run(feed.clone(), from, shutdown.clone()));
        tokio::spawn(assignments.follow(wakeups, feed, from, shutdown.clone()));
        tokio::spawn(reaper::run(db, writer.clone(), shutdown.clone()));
        tokio::spawn(throttle.run(writer, shutdown));
    }
}
