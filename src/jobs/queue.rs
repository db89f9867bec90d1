//! What the services of jobs share, and the loops that keep the queue going.

use std::sync::Arc;

use sea_orm::DbBackend;
use tokio_util::sync::CancellationToken;

use super::{
    dispatch::{Dispatcher, reaper},
    schedules::Ticker,
    store::{create::Creator, writer::Desk},
    types::LiveTypes,
    wakeups::Bell,
    worker::{assignments::Flights, progress::Throttle},
};
use crate::{
    batch::group_commit::GroupCommit, db::Db, error::Result, feed::Position, monitor::Feed,
};

/// How many jobs one transaction makes, unless a single call makes more.
const ROOM: usize = 2_000;

/// How many transactions make jobs at a time on PostgreSQL.
const AT_ONCE: usize = 2;

/// The job queue of this process. Clones share it.
#[derive(Debug, Clone)]
pub struct Queue {
    pub(super) db: Db,
    pub(super) types: LiveTypes,
    pub(super) bell: Bell,
    pub(super) creator: GroupCommit<Creator>,
    pub(super) desk: Desk,
    pub(super) dispatcher: Dispatcher,
    pub(super) flights: Flights,
    pub(super) throttle: Throttle,
    shutdown: CancellationToken,
}

impl Queue {
    /// The queue of this database, in which nothing is given to workers until it runs.
    pub fn new(db: Db, shutdown: CancellationToken) -> Self {
        let (types, bell) = (LiveTypes::new(db.clone()), Bell::default());
        let by_key = db.by_key();
        let desk = Desk::start(&by_key, &types, &bell);
        let dispatcher = Dispatcher::new(
            by_key.clone(),
            types.clone(),
            bell.clone(),
            desk.clone(),
            shutdown.clone(),
        );
        let creator = Creator {
            db: by_key,
            bell: bell.clone(),
        };
        let at_once = if db.backend() == DbBackend::Postgres {
            AT_ONCE
        } else {
            1
        };
        let creator = GroupCommit::start(Arc::new(creator), at_once, ROOM, shutdown.clone());
        Self {
            db,
            types,
            bell,
            creator,
            desk,
            dispatcher,
            flights: Flights::default(),
            throttle: Throttle::default(),
            shutdown,
        }
    }

    /// Reads what has to be known before the first job.
    pub async fn open(&self) -> Result<()> {
        self.types.reload().await
    }

    /// Starts the loops; they follow the feed from this position.
    pub fn start(self, feed: Feed, from: Position) {
        let ticker = Ticker::new(&self);
        let Self {
            db,
            types,
            bell,
            desk,
            dispatcher,
            flights,
            throttle,
            shutdown,
            ..
        } = self;
        tokio::spawn(dispatcher.run());
        tokio::spawn(types.follow(feed.clone(), from, shutdown.clone()));
        tokio::spawn(ticker.run(feed.clone(), from, shutdown.clone()));
        tokio::spawn(flights.follow(bell, feed, from, shutdown.clone()));
        tokio::spawn(reaper::run(db, desk.clone(), shutdown.clone()));
        tokio::spawn(throttle.run(desk, shutdown));
    }
}
