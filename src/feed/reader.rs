//! The feed as this process shares it: whoever is at the head is given what the tailer has read, whoever is behind reads
//! the table.

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
    incarnations::{self, Occasion},
    read::{self, Planned},
    ring::{Readable, Ring},
};
use crate::{
    db::Db,
    error::{Error, Result},
};

/// How many changes are read at a time.
pub(super) const PAGE: i64 = 500;

/// How long to wait after a failure.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// The feed as this process sees it. Clones share it.
pub struct Feed<T>(pub(super) Arc<Shared<T>>);

impl<T> Clone for Feed<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

pub(super) struct Shared<T> {
    pub(super) db: Db,
    /// The same, for the one who follows the feed: it looks after every commit.
    pub(super) by_key: Db,
    /// What this process calls itself in its signals.
    pub(super) process: String,
    /// Makes a change and its cursor into what subscribers need.
    pub(super) make: fn(&Change, String) -> T,
    pub(super) history: RwLock<Arc<History>>,
    /// That of the history, for those who only want to know whether it is the same.
    pub(super) generation: AtomicU64,
    /// Whether the start of this process is recorded in the history.
    pub(super) is_start_recorded: AtomicBool,
    pub(super) ring: RwLock<Ring<T>>,
    /// The place up to which this process has read.
    pub(super) head: watch::Sender<Position>,
    /// Whether changes are committed that wait behind a running transaction.
    pub(super) waiting: AtomicBool,
    /// Whether the database could be read the last time.
    pub(super) reading: watch::Sender<bool>,
    /// How many changes this process has read.
    pub(super) read: AtomicU64,
    /// Changes among them that could not be decoded.
    pub(super) unreadable: AtomicU64,
}

impl<T: Readable + Send + Sync + 'static> Feed<T> {
    /// The feed of this database, not open yet.
    pub fn new(db: Db, make: fn(&Change, String) -> T) -> Self {
        let history = History {
            generation: 0,
            database: Uuid::nil(),
            incarnations: Vec::new(),
            is_initial: false,
        };
        Self(Arc::new(Shared {
            by_key: db.by_key(),
            db,
            process: Uuid::now_v7().to_string(),
            make,
            history: RwLock::new(Arc::new(history)),
            generation: AtomicU64::new(0),
            is_start_recorded: AtomicBool::new(false),
            ring: RwLock::default(),
            head: watch::Sender::new(Position::default()),
            waiting: AtomicBool::new(false),
            reading: watch::Sender::new(true),
            read: AtomicU64::new(0),
            unreadable: AtomicU64::new(0),
        }))
    }

    /// Opens the feed at its present end, and begins a new incarnation of its history.
    pub async fn open(&self) -> Result<()> {
        self.record_start().await?;
        let history = incarnations::load(self.0.db.reader(), self.generation()).await?;
        let (end, _) =
            bounds::now_in(self.0.db.reader(), self.0.db.backend(), history.generation).await?;
        self.install(history);
        self.restart(end.position);
        Ok(())
    }

    pub(super) async fn record_start(&self) -> Result<()> {
        match incarnations::record(&self.0.db, Occasion::Start).await {
            Ok(()) => {
                self.0.is_start_recorded.store(true, Ordering::Relaxed);
                Ok(())
            }
            // While nothing can be written, nothing happens that could be told apart. The tailer tries again.
            Err(error) if error.storage_fault().is_some() => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn restart(&self, end: Position) {
        let mut ring = self.0.ring.write();
        ring.restart(end);
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
        self.0
            .generation
            .store(history.generation, Ordering::Release);
        drop(current);
        history
    }

    /// The number of the history in this process, see [`Position::generation`].
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// The id of the current incarnation of the history.
    pub fn history_id(&self) -> String {
        self.history().current().to_string()
    }

    /// Fails if the position is of a history that was replaced.
    pub fn check_current(&self, position: Position) -> Result<()> {
        if position.generation == self.generation() {
            return Ok(());
        }
        Err(self.replaced())
    }

    fn replaced(&self) -> Error {
        Error::HistoryReplaced {
            history_id: self.history_id(),
        }
    }

    /// The history with the incarnation that the database has now. Fails if the database has come to be of another
    /// history; the tailer notices that by itself.
    async fn history_with(
        &self,
        current: Option<Uuid>,
        db: &impl ConnectionTrait,
    ) -> Result<Arc<History>> {
        let history = self.history();
        let current = current.unwrap_or_default();
        if history.current() == current {
            return Ok(history);
        }
        let newer = incarnations::load(db, history.generation).await?;
        let Some(history) = self.extend(newer) else {
            self.0.db.wake_feed();
            return Err(self.replaced());
        };
        Ok(history)
    }

    /// Takes over a history that continues the present one. Gives none if it does not.
    pub(super) fn extend(&self, newer: History) -> Option<Arc<History>> {
        let mut current = self.0.history.write();
        if newer.generation != current.generation || !newer.continues(&current) {
            // Another reader may have taken over more of it meanwhile.
            return current.continues(&newer).then(|| current.clone());
        }
        *current = Arc::new(newer);
        Some(current.clone())
    }

    /// Makes and reads the cursors of this database.
    pub fn cursors(&self) -> Cursors {
        Cursors::new(self.history())
    }

    /// Whether the feed can be read at present.
    pub fn reading(&self) -> watch::Receiver<bool> {
        self.0.reading.subscribe()
    }

    /// The place up to which this process has read.
    pub fn head(&self) -> Position {
        *self.0.head.borrow()
    }

    /// Where to start from now.
    pub async fn now(&self) -> Result<Start> {
        self.now_in(self.0.db.reader()).await
    }

    /// As [`Self::now`], of the moment that a transaction sees.
    pub async fn now_in(&self, db: &impl ConnectionTrait) -> Result<Start> {
        let generation = self.generation();
        let (mut start, current) = bounds::now_in(db, self.0.db.backend(), generation).await?;
        self.history_with(current, db).await?;
        start.seen.incarnation = current.map_or(0, token);
        Ok(start)
    }

    /// Where to start with all that the feed holds.
    pub async fn earliest(&self) -> Result<Start> {
        let generation = self.generation();
        let state = bounds::state(&self.0.db).await?;
        let position = Position {
            generation,
            xid: state.pruned_xid,
            seq: state.pruned_seq,
        };
        Ok(Start {
            position,
            ..Default::default()
        })
    }

    /// Where a client's cursor says to go on, if it is of this history, and the feed can be read from there without loss.
    pub async fn resume(&self, cursor: &str) -> Result<Start> {
        let claim = self.cursors().decode(cursor)?;
        let position = claim.start.position;
        let (evidence, current) = bounds::evidence(&self.0.db, position).await?;
        let history = self.history_with(current, self.0.db.reader()).await?;
        if !history.confirms(&claim, &evidence) {
            return Err(self.replaced());
        }
        read::check_kept(evidence.pruned, &self.cursors(), position)?;
        Ok(claim.start)
    }

    /// What the feed holds.
    pub async fn status(&self) -> Result<bounds::Status> {
        bounds::status(&self.0.db, self.generation()).await
    }

    /// How many changes there are after `position`, and how old the oldest is.
    pub async fn behind(&self, position: Position) -> Result<(i64, Duration)> {
        if position >= self.head() && !self.0.waiting.load(Ordering::Relaxed) {
            return Ok((0, Duration::ZERO));
        }
        self.left_after(position).await
    }

    /// How far this process is behind the feed: how many committed changes it has not read yet,
    /// and how old the oldest of them is.
    pub async fn lag(&self) -> Result<(i64, Duration)> {
        self.left_after(self.head()).await
    }

    /// How many changes the database has after `position`, and how old the oldest is.
    pub async fn left_after(&self, position: Position) -> Result<(i64, Duration)> {
        let (changes, oldest) = bounds::behind(&self.0.db, position).await?;
        let age = oldest.and_then(|oldest| (chrono::Utc::now() - oldest).to_std().ok());
        Ok((changes, age.unwrap_or_default()))
    }

    /// How many changes this process has read since its start.
    pub fn read(&self) -> u64 {
        self.0.read.load(Ordering::Relaxed)
    }

    /// Changes that this process has read since its start and could not decode.
    pub fn unreadable(&self) -> u64 {
        self.0.unreadable.load(Ordering::Relaxed)
    }

    /// How many changes the feed holds, at most: numbers that were given and not used count.
    pub async fn kept(&self) -> Result<i64> {
        let pruned = bounds::state(&self.0.db).await?.pruned_seq;
        Ok(self.head().seq.saturating_sub(pruned).max(0))
    }

    /// Waits until there is something after `position`, and returns some of it, in order.
    ///
    /// At the head this shares what the tailer has read; behind it, it reads the
    /// table. A database that is away is waited for. Safe to drop while waiting.
    pub async fn after(&self, position: Position) -> Result<Vec<Arc<Entry<T>>>> {
        // Subscribed before looking, so that nothing is published in between.
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
                // Boxed, for few are behind, and everybody would have room for it.
                None => match Box::pin(self.stored_after(position)).await {
                    Err(error) if error.is_unavailable() => sleep(RETRY).await,
                    // There is nothing after `position`, so nothing up to where the tailer was before.
                    Ok(entries) if entries.is_empty() => position = position.max(read_up_to),
                    done => return done,
                },
            }
        }
    }

    /// What the ring holds after `position`; `None` if that reaches back before the ring.
    fn shared_after(&self, position: Position) -> Option<Vec<Arc<Entry<T>>>> {
        let ring = self.0.ring.read();
        ring.after(position)
    }

    async fn stored_after(&self, position: Position) -> Result<Vec<Arc<Entry<T>>>> {
        let page = read::after(&self.0.db, Planned::Anew, position, PAGE).await?;
        let history = self
            .history_with(page.incarnation, self.0.db.reader())
            .await?;
        if position.generation != history.generation {
            return Err(self.replaced());
        }
        let cursors = Cursors::new(history);
        page.check_kept(&cursors, position)?;
        Ok(page
            .changes
            .iter()
            .map(|change| Arc::new(self.entry(change, &cursors)))
            .collect())
    }

    pub(super) fn entry(&self, change: &Change, cursors: &Cursors) -> Entry<T> {
        let (position, bytes) = (change.position, change.message.len());
        Entry {
            position,
            ends_commit: change.ends_commit,
            item: (self.0.make)(change, cursors.encode(position)),
            bytes,
        }
    }
}
