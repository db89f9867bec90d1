//! The feed of this process: subscribers at the head share the changes read by the tailer, and
//! subscribers behind the ring read the table.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;
use sea_orm::ConnectionTrait;
use tokio::{sync::watch, time::sleep};
use uuid::Uuid;

use super::{
    Change, Cursors, Entry, Position, Start, bounds,
    history::{History, token},
    incarnations::{self, CheckReason},
    read::{self, QueryPlan},
    ring::{Readable, Ring},
};
use crate::{
    db::Db,
    error::{Error, Result},
};

/// Maximum number of changes per read.
pub(super) const MAX_CHANGES_PER_READ: i64 = 500;

/// Pause after a failed read.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// Feed of this process. Clones share the state.
pub struct Feed<T>(pub(super) Arc<Shared<T>>);

impl<T> Clone for Feed<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

pub(super) struct Shared<T> {
    pub(super) db: Db,
    /// Connections whose planner is restricted to indexes, for the tailer, which reads after every
    /// commit.
    pub(super) by_key: Db,
    /// Name of this process in signals to other processes.
    pub(super) process: String,
    /// Converts a change and its cursor to the shared item for subscribers.
    pub(super) convert: fn(&Change, String) -> T,
    pub(super) history: RwLock<Arc<History>>,
    /// Generation of `history`, readable without the lock.
    pub(super) generation: AtomicU64,
    /// True if the start of this process is recorded in the history.
    pub(super) is_start_recorded: AtomicBool,
    pub(super) ring: RwLock<Ring<T>>,
    /// Position up to which this process has read.
    pub(super) head: watch::Sender<Position>,
    /// True if committed changes wait for a running transaction.
    pub(super) waiting: AtomicBool,
    /// True if the last read of the database succeeded.
    pub(super) reading: watch::Sender<bool>,
    /// Number of changes that this process has read.
    pub(super) read_count: AtomicU64,
    /// Number of changes that this process has read and could not decode.
    pub(super) unreadable_count: AtomicU64,
}

impl<T: Readable + Send + Sync + 'static> Feed<T> {
    /// Creates the feed of a database. [`Self::open`] must follow.
    pub fn new(db: Db, convert: fn(&Change, String) -> T) -> Self {
        let history = History { generation: 0, database: Uuid::nil(), incarnations: Vec::new(), is_initial: false };
        Self(Arc::new(Shared {
            by_key: db.by_key(),
            db,
            process: Uuid::now_v7().to_string(),
            convert,
            history: RwLock::new(Arc::new(history)),
            generation: AtomicU64::new(0),
            is_start_recorded: AtomicBool::new(false),
            ring: RwLock::default(),
            head: watch::Sender::new(Position::default()),
            waiting: AtomicBool::new(false),
            reading: watch::Sender::new(true),
            read_count: AtomicU64::new(0),
            unreadable_count: AtomicU64::new(0),
        }))
    }

    /// Opens the feed at its present end, and begins a new incarnation of the history.
    pub async fn open(&self) -> Result<()> {
        self.record_start().await?;
        let history = incarnations::load(self.0.db.reader(), self.generation()).await?;
        let (end, _) = bounds::now_in(self.0.db.reader(), self.0.db.backend(), history.generation).await?;
        self.install(history);
        self.reset_to(end.position);
        Ok(())
    }

    pub(super) async fn record_start(&self) -> Result<()> {
        match incarnations::record(&self.0.db, CheckReason::Start).await {
            Ok(()) => {
                self.0.is_start_recorded.store(true, Ordering::Relaxed);
                Ok(())
            }
            // While storage refuses writes, no change can be recorded, so no position is ambiguous.
            // The tailer tries again.
            Err(error) if error.storage_fault().is_some() => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn reset_to(&self, end: Position) {
        let mut ring = self.0.ring.write();
        ring.reset(end);
        drop(ring);
        self.0.head.send_replace(end);
    }

    pub(super) fn history(&self) -> Arc<History> {
        let history = self.0.history.read();
        history.clone()
    }

    pub(super) fn install(&self, history: History) -> Arc<History> {
        let history = Arc::new(history);
        let mut current = self.0.history.write();
        *current = history.clone();
        self.0.generation.store(history.generation, Ordering::Release);
        drop(current);
        history
    }

    /// Returns the number of the history in this process, see [`Position::generation`].
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Returns the id of the current incarnation.
    pub fn history_id(&self) -> String {
        self.history().current().to_string()
    }

    /// Returns an error if the position belongs to a replaced history.
    pub fn check_current(&self, position: Position) -> Result<()> {
        if position.generation == self.generation() {
            return Ok(());
        }
        Err(self.replaced())
    }

    fn replaced(&self) -> Error {
        Error::HistoryReplaced { history_id: self.history_id() }
    }

    /// Returns the history including the current incarnation of the database. Fails if the database
    /// has a different history; the tailer detects the replacement separately.
    async fn history_with(&self, current: Option<Uuid>, db: &impl ConnectionTrait) -> Result<Arc<History>> {
        let history = self.history();
        let current = current.unwrap_or_default();
        if history.current() == current {
            return Ok(history);
        }
        let newer = incarnations::load(db, history.generation).await?;
        let Some(history) = self.extend(newer) else {
            self.0.db.notify_feed();
            return Err(self.replaced());
        };
        Ok(history)
    }

    /// Installs a history that continues the present history. Returns none if the histories differ.
    pub(super) fn extend(&self, newer: History) -> Option<Arc<History>> {
        let mut current = self.0.history.write();
        if newer.generation != current.generation || !newer.continues(&current) {
            // Another reader may have installed a longer history meanwhile.
            return current.continues(&newer).then(|| current.clone());
        }
        *current = Arc::new(newer);
        Some(current.clone())
    }

    /// Returns the cursor codec of this history.
    pub fn cursors(&self) -> Cursors {
        Cursors::new(self.history())
    }

    /// Subscribes to the state of the feed: true while the feed can be read.
    pub fn reading(&self) -> watch::Receiver<bool> {
        self.0.reading.subscribe()
    }

    /// Returns the position up to which this process has read.
    pub fn head(&self) -> Position {
        *self.0.head.borrow()
    }

    /// Returns the start for a watch of later changes.
    pub async fn now(&self) -> Result<Start> {
        self.now_in(self.0.db.reader()).await
    }

    /// Returns the start as of the snapshot of a transaction.
    pub async fn now_in(&self, db: &impl ConnectionTrait) -> Result<Start> {
        let generation = self.generation();
        let (mut start, current) = bounds::now_in(db, self.0.db.backend(), generation).await?;
        self.history_with(current, db).await?;
        start.seen.incarnation = current.map_or(0, token);
        Ok(start)
    }

    /// Returns the start for a watch of every stored change.
    pub async fn earliest(&self) -> Result<Start> {
        let generation = self.generation();
        let state = bounds::state(&self.0.db).await?;
        let position = Position { generation, xid: state.pruned_xid, seq: state.pruned_seq };
        Ok(Start { position, ..Default::default() })
    }

    /// Returns the start of a client's cursor. Fails if the cursor is of another history, or if
    /// later changes were pruned.
    pub async fn resume(&self, cursor: &str) -> Result<Start> {
        let cursor = self.cursors().decode(cursor)?;
        let position = cursor.start.position;
        let (stored, current) = bounds::stored_state(&self.0.db, position).await?;
        let history = self.history_with(current, self.0.db.reader()).await?;
        if !history.confirms(&cursor, &stored) {
            return Err(self.replaced());
        }
        read::check_kept(stored.pruned, &self.cursors(), position)?;
        Ok(cursor.start)
    }

    /// Returns the content of the feed.
    pub async fn status(&self) -> Result<bounds::Status> {
        bounds::status(&self.0.db, self.generation()).await
    }

    /// Returns the number of changes after `position`, and the age of the oldest. No query is
    /// needed at the head.
    pub async fn backlog_after(&self, position: Position) -> Result<(i64, Duration)> {
        if position >= self.head() && !self.0.waiting.load(Ordering::Relaxed) {
            return Ok((0, Duration::ZERO));
        }
        self.stored_backlog_after(position).await
    }

    /// Returns the number of committed changes that this process has not read, and the age of the
    /// oldest.
    pub async fn lag(&self) -> Result<(i64, Duration)> {
        self.stored_backlog_after(self.head()).await
    }

    /// Queries the number of changes after `position`, and the age of the oldest.
    pub async fn stored_backlog_after(&self, position: Position) -> Result<(i64, Duration)> {
        let (changes, oldest) = bounds::count_after(&self.0.db, position).await?;
        let age = oldest.and_then(|oldest| (chrono::Utc::now() - oldest).to_std().ok());
        Ok((changes, age.unwrap_or_default()))
    }

    /// Returns the number of changes read since the start of the process.
    pub fn read_count(&self) -> u64 {
        self.0.read_count.load(Ordering::Relaxed)
    }

    /// Returns the number of undecodable changes since the start of the process.
    pub fn unreadable_count(&self) -> u64 {
        self.0.unreadable_count.load(Ordering::Relaxed)
    }

    /// Returns an upper bound of the stored changes, in which unused sequence numbers are included.
    pub async fn retained_count(&self) -> Result<i64> {
        let pruned = bounds::state(&self.0.db).await?.pruned_seq;
        Ok(self.head().seq.saturating_sub(pruned).max(0))
    }

    /// Waits for changes after `position`, and returns some of them in order.
    ///
    /// At the head, subscribers share the changes read by the tailer. Behind the ring, changes are
    /// read from the table. The call waits while the database is unavailable. Cancel safe.
    pub async fn after(&self, position: Position) -> Result<Vec<Arc<Entry<T>>>> {
        // Subscribed before the first read, so that no change is published in between.
        let mut head = self.0.head.subscribe();
        let mut position = position;
        loop {
            let read_up_to = *head.borrow_and_update();
            if position.generation < read_up_to.generation {
                return Err(self.replaced());
            }
            match self.shared_after(position) {
                Some(entries) if !entries.is_empty() => return Ok(entries),
                Some(_) => {
                    if head.changed().await.is_err() {
                        return Err(Error::ShuttingDown);
                    }
                }
                // Boxed, because few subscribers are behind, and every future would reserve the
                // space.
                None => match Box::pin(self.stored_after(position)).await {
                    Err(error) if error.is_unavailable() => sleep(RETRY).await,
                    // Nothing follows `position`, so nothing lies between `position` and the
                    // earlier head.
                    Ok(entries) if entries.is_empty() => position = position.max(read_up_to),
                    result => return result,
                },
            }
        }
    }

    /// Returns the ring's entries after `position`; none if the position lies before the ring.
    fn shared_after(&self, position: Position) -> Option<Vec<Arc<Entry<T>>>> {
        let ring = self.0.ring.read();
        ring.after(position)
    }

    async fn stored_after(&self, position: Position) -> Result<Vec<Arc<Entry<T>>>> {
        let page = read::after(&self.0.db, QueryPlan::Fresh, position, MAX_CHANGES_PER_READ).await?;
        let history = self.history_with(page.incarnation, self.0.db.reader()).await?;
        if position.generation != history.generation {
            return Err(self.replaced());
        }
        let cursors = Cursors::new(history);
        page.check_kept(&cursors, position)?;
        Ok(page.changes.iter().map(|change| Arc::new(self.entry(change, &cursors))).collect())
    }

    pub(super) fn entry(&self, change: &Change, cursors: &Cursors) -> Entry<T> {
        let (position, bytes) = (change.position, change.message.len());
        Entry {
            position,
            ends_commit: change.ends_commit,
            item: (self.0.convert)(change, cursors.encode(position)),
            bytes,
        }
    }
}
