//! One reader per process follows the feed and shares what it reads; whoever is behind reads the table.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use sea_orm::DbBackend;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Change, Cursors, Position, Start,
    read::{self, Planned},
};
use crate::{
    db::{
        Db,
        signals::{self, Ear},
    },
    error::{Error, Result},
};

/// How many changes are read at a time.
const PAGE: i64 = 500;

/// How many changes are shared at most.
const RING_CHANGES: usize = 8_192;

/// How many bytes of messages are shared at most.
const RING_BYTES: usize = 16 << 20;

/// How long a commit of another process can go unnoticed if its signal is lost.
const POLL: Duration = Duration::from_millis(500);

/// How often to look while committed changes wait behind a running transaction, whose end wakes nobody.
const POLL_WAITING: Duration = Duration::from_millis(2);

/// How long to wait after a failure.
const RETRY: Duration = Duration::from_millis(250);

/// How close together signals to other processes are sent at most.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// The channel of PostgreSQL on which processes tell each other that they have committed.
const CHANNEL: &str = "watchpost_changes";

/// A change as subscribers share it: read once, made into a `T` once.
#[derive(Debug)]
pub struct Entry<T> {
    /// Its place in the feed.
    pub position: Position,
    /// Whether it is the last change of its transaction.
    pub ends_commit: bool,
    /// What subscribers need of it.
    pub item: T,
    bytes: usize,
}

/// A change that subscribers share, which may be one that could not be decoded.
pub trait Readable {
    /// The reason why the change could not be decoded, if it could not.
    fn problem(&self) -> Option<&str>;
}

/// The feed as this process sees it. Clones share it.
pub struct Feed<T>(Arc<Shared<T>>);

impl<T> Clone for Feed<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<T> {
    db: Db,
    /// The same, for the one who follows the feed: it looks after every commit.
    by_key: Db,
    /// What this process calls itself in its signals.
    process: String,
    /// Of this database, which is known once it is open.
    cursors: OnceLock<Cursors>,
    /// Makes a change and its cursor into what subscribers need.
    make: fn(&Change, String) -> T,
    ring: RwLock<Ring<T>>,
    /// The place up to which this process has read.
    head: watch::Sender<Position>,
    /// Whether changes are committed that wait behind a running transaction.
    waiting: AtomicBool,
    /// Whether the database could be read the last time.
    reading: watch::Sender<bool>,
    /// How many changes this process has read.
    read: AtomicU64,
    /// Changes among them that could not be decoded.
    unreadable: AtomicU64,
}

/// The newest changes.
struct Ring<T> {
    /// The place before the first entry.
    start: Position,
    entries: VecDeque<Arc<Entry<T>>>,
    bytes: usize,
}

impl<T: Readable + Send + Sync + 'static> Feed<T> {
    /// The feed of this database, not open yet.
    pub fn new(db: Db, make: fn(&Change, String) -> T) -> Self {
        let ring = RwLock::new(Ring {
            start: Position::default(),
            entries: VecDeque::new(),
            bytes: 0,
        });
        let (head, reading) = (
            watch::Sender::new(Position::default()),
            watch::Sender::new(true),
        );
        Self(Arc::new(Shared {
            by_key: db.by_key(),
            db,
            process: Uuid::now_v7().to_string(),
            cursors: OnceLock::new(),
            make,
            ring,
            head,
            waiting: AtomicBool::new(false),
            reading,
            read: AtomicU64::new(0),
            unreadable: AtomicU64::new(0),
        }))
    }

    /// Opens the feed at its present end.
    pub async fn open(&self) -> Result<()> {
        let database = read::state(&self.0.db).await?.database_id;
        let end = read::settled(&self.0.db).await?;
        self.0.cursors.get_or_init(|| Cursors::new(database));
        self.0
            .ring
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .start = end;
        self.0.head.send_replace(end);
        Ok(())
    }

    /// Makes and reads the cursors of this database.
    pub fn cursors(&self) -> Cursors {
        self.0
            .cursors
            .get()
            .copied()
            .unwrap_or(Cursors::new(Uuid::nil()))
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
        read::now(&self.0.db).await
    }

    /// Where to start with all that the feed holds.
    pub async fn earliest(&self) -> Result<Start> {
        let state = read::state(&self.0.db).await?;
        let position = Position {
            xid: state.pruned_xid,
            seq: state.pruned_seq,
        };
        Ok(Start {
            position,
            ..Default::default()
        })
    }

    /// Where a client's cursor says to go on, if the feed can be read from there without loss.
    pub async fn resume(&self, cursor: &str) -> Result<Start> {
        let start = self.cursors().decode(cursor)?;
        read::check_reached(&self.0.db, &start).await?;
        read::check_kept(&self.0.db, self.cursors(), start.position).await?;
        Ok(start)
    }

    /// What the feed holds.
    pub async fn status(&self) -> Result<read::Status> {
        read::status(&self.0.db).await
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

    async fn left_after(&self, position: Position) -> Result<(i64, Duration)> {
        let (changes, oldest) = read::behind(&self.0.db, position).await?;
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
        let pruned = read::state(&self.0.db).await?.pruned_seq;
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
        let ring = self.0.ring.read().unwrap_or_else(PoisonError::into_inner);
        if position < ring.start {
            return None;
        }
        let first = ring
            .entries
            .partition_point(|entry| entry.position <= position);
        Some(ring.entries.range(first..).take(256).cloned().collect())
    }

    async fn stored_after(&self, position: Position) -> Result<Vec<Arc<Entry<T>>>> {
        let page = read::after(&self.0.db, Planned::Anew, position, PAGE).await?;
        page.check_kept(self.cursors(), position)?;
        Ok(page
            .changes
            .iter()
            .map(|change| Arc::new(self.entry(change)))
            .collect())
    }

    fn entry(&self, change: &Change) -> Entry<T> {
        let (position, bytes) = (change.position, change.message.len());
        let cursor = self.cursors().encode(position);
        Entry {
            position,
            ends_commit: change.ends_commit,
            item: (self.0.make)(change, cursor),
            bytes,
        }
    }

    /// What hears that another process has committed. Without it that is only noticed after a while.
    pub fn ear(&self) -> (&'static str, Ear) {
        let (db, process) = (self.0.db.clone(), self.0.process.clone());
        let ear = move |said: Option<&str>| {
            // What this process has committed it knows before.
            if said != Some(&process) {
                db.wake_feed();
            }
        };
        (CHANNEL, Box::new(ear))
    }

    /// Follows the feed until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let background = shutdown.child_token();
        if self.0.db.backend() == DbBackend::Postgres {
            let (db, process) = (self.0.db.clone(), self.0.process.clone());
            tokio::spawn(announce(db, process, background.clone()));
        }
        while !shutdown.is_cancelled() {
            let pause = match self.advance().await {
                Ok(pause) => {
                    self.0
                        .reading
                        .send_if_modified(|reading| !std::mem::replace(reading, true));
                    pause
                }
                Err(error) => {
                    if self.0.reading.send_replace(false) {
                        tracing::warn!(%error, "the change feed cannot be read; watches wait");
                    }
                    RETRY
                }
            };
            if pause.is_zero() {
                continue;
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.0.db.committed() => {}
                () = sleep(pause) => {}
            }
        }
        background.cancel();
    }

    /// Logs and counts changes that could not be decoded. Subscribers get them as such.
    fn note_unreadable(&self, entries: &[Arc<Entry<T>>]) {
        for entry in entries {
            if let Some(problem) = entry.item.problem() {
                let seq = entry.position.seq;
                tracing::error!(change.seq = seq, %problem, "a change of the feed cannot be decoded");
                self.0.unreadable.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Reads what is new. Returns how long to wait, unless woken, before looking again.
    async fn advance(&self) -> Result<Duration> {
        let mut head = self.head();
        let page = read::after(&self.0.by_key, Planned::Once, head, PAGE).await?;
        let full = i64::try_from(page.changes.len()) == Ok(PAGE);
        let pruned = page.pruned;
        let is_gap = head < pruned;
        if is_gap {
            // Something was deleted before this process had read it. Whoever waits at the head is told so by the
            // table, since the ring does not reach back to it any more.
            tracing::warn!("changes were pruned before they were read; watches must begin anew");
            head = pruned;
        }
        let new = page.changes.iter();
        let new = new.filter(|change| change.position > head);
        let entries: Vec<_> = new.map(|change| Arc::new(self.entry(change))).collect();
        self.note_unreadable(&entries);
        if is_gap || !entries.is_empty() {
            let read = u64::try_from(entries.len()).unwrap_or(0);
            let last = entries.last().map_or(head, |entry| entry.position);
            let mut ring = self.0.ring.write().unwrap_or_else(PoisonError::into_inner);
            if is_gap {
                ring.restart(pruned);
            }
            ring.push(entries);
            drop(ring);
            self.0.head.send_replace(last);
            self.0.read.fetch_add(read, Ordering::Relaxed);
        }
        self.0.waiting.store(page.waiting, Ordering::Relaxed);
        Ok(match (full, page.waiting) {
            (true, _) => Duration::ZERO,
            (false, true) => POLL_WAITING,
            (false, false) => POLL,
        })
    }
}

impl<T> Ring<T> {
    /// Forgets all, and goes on after this place.
    fn restart(&mut self, start: Position) {
        self.entries.clear();
        self.bytes = 0;
        self.start = start;
    }

    fn push(&mut self, entries: Vec<Arc<Entry<T>>>) {
        for entry in entries {
            self.bytes += entry.bytes;
            self.entries.push_back(entry);
        }
        while self.entries.len() > RING_CHANGES || self.bytes > RING_BYTES {
            let Some(oldest) = self.entries.pop_front() else {
                return;
            };
            self.bytes -= oldest.bytes;
            self.start = oldest.position;
        }
    }
}

/// Tells other processes that this one has committed: after the commit and not
/// in it, where it would make commits wait for each other.
async fn announce(db: Db, process: String, shutdown: CancellationToken) {
    let announcing = async {
        loop {
            db.to_announce().await;
            let next = Instant::now() + DEBOUNCE;
            if let Err(error) = signals::say(&db, CHANNEL, &process).await {
                // The others poll.
                tracing::debug!(%error, "other processes could not be told of a commit");
            }
            sleep_until(next).await;
        }
    };
    shutdown.run_until_cancelled(announcing).await;
}
