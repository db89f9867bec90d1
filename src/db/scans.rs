//! Connections for scans: reading that looks at many rows, and may take long. Scans have a few connections of their own,
//! so that short reads and writes never wait for them, and take turns in the order in which they come.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use sea_orm::{DatabaseConnection, DatabaseTransaction};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

pub(super) use self::watch::Watch;
use super::{
    Db,
    reader::{Life, Reader},
};
use crate::{
    deadline,
    error::{Error, Result},
};

mod watch;

/// Longest wait for a turn. A call with an earlier deadline waits until then.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Number of calls that may wait for a turn.
const LONGEST_LINE: usize = 200;

/// Time that a connection has to come back to its pool before its slot is given to the next scan, which then waits for
/// the connection itself.
const SETTLING: Duration = Duration::from_secs(5);

/// The slots for scans. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Scans(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// One permit for each slot, handed out in the order in which they are asked for.
    turns: Arc<Semaphore>,
    slots: Vec<Slot>,
    free: Mutex<Vec<Slot>>,
    life: Life,
    waiting: AtomicUsize,
    refused: AtomicU64,
}

/// A connection for scans: a pool of one, so that what is known of the pool is known of the connection.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) reader: Reader,
    pub(super) watch: Watch,
}

/// A turn at reading much, over a connection for scans. The connection serves one query at a time, so a transaction has
/// to end before anything else is read. The query of a scan that is dropped is stopped within the database.
#[derive(Debug)]
pub struct Scan {
    reader: Reader,
    /// None of a short read.
    turn: Option<Turn>,
}

/// A slot that is in use.
#[derive(Debug)]
struct Turn {
    scans: Scans,
    slot: Slot,
    _permit: OwnedSemaphorePermit,
}

/// Figures of the scans of a process.
#[derive(Debug, Clone, Copy)]
pub struct ScanCounts {
    /// Number of connections for scans.
    pub connections: usize,
    /// Number of scans that run, those included whose query is being stopped.
    pub running: usize,
    /// Number of calls that wait for a turn.
    pub waiting: usize,
    /// Number of calls that were refused because they did not get a turn.
    pub refused: u64,
    /// Number of queries that were stopped within the database.
    pub stopped: u64,
}

impl Db {
    /// Waits for a turn at reading much, in the order in which calls ask for one. Not to be called by one who has a turn.
    /// Fails with `NoTurn` after 30 seconds, or at the deadline of the call if that is earlier; and at once with `LineFull`
    /// if 200 calls wait.
    pub async fn scan(&self) -> Result<Scan> {
        let turn = self.0.scans.turn().await?;
        Ok(Scan {
            reader: turn.slot.reader.clone(),
            turn: Some(turn),
        })
    }

    /// The same for reading that is a scan in some cases only; else it is done over the connections for short reads.
    pub async fn scan_if(&self, is_scan: bool) -> Result<Scan> {
        if is_scan {
            return self.scan().await;
        }
        Ok(Scan {
            reader: self.0.reader.clone(),
            turn: None,
        })
    }

    /// Figures of the scans of this process.
    pub fn scan_counts(&self) -> ScanCounts {
        self.0.scans.counts()
    }
}

impl Scans {
    /// Turns at these slots.
    pub(super) fn new(slots: Vec<Slot>, life: Life) -> Self {
        Self(Arc::new(Shared {
            turns: Arc::new(Semaphore::new(slots.len())),
            free: Mutex::new(slots.clone()),
            slots,
            life,
            waiting: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    /// Waits for a turn.
    async fn turn(&self) -> Result<Turn> {
        let (begun, deadline) = (Instant::now(), deadline::current());
        let until = begun + LONGEST_WAIT;
        let until = deadline.map_or(until, |deadline| until.min(deadline));
        let line = Waiting::enter(&self.0);
        let turn = self.0.turns.clone();
        let permit = if let Ok(permit) = turn.clone().try_acquire_owned() {
            permit
        } else if line.before > LONGEST_LINE {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
            let waiting = line.before - 1;
            return Err(Error::LineFull { waiting });
        } else {
            match timeout_at(until, turn.acquire_owned()).await {
                Ok(permit) => permit.map_err(Error::internal)?,
                Err(_) => return Err(self.refuse(begun).await),
            }
        };
        drop(line);
        let slot = self.0.free.lock().pop();
        // There are as many permits as slots.
        let slot = slot.ok_or_else(|| Error::internal("no slot for a scan is free"))?;
        slot.watch.begin(deadline);
        Ok(Turn {
            scans: self.clone(),
            slot,
            _permit: permit,
        })
    }

    /// The error of a call that has waited in vain.
    async fn refuse(&self, begun: Instant) -> Error {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        let waited = begun.elapsed();
        if !self.0.life.is_there().await {
            return Error::DatabaseAway;
        }
        Error::NoTurn { waited }
    }

    fn counts(&self) -> ScanCounts {
        let connections = self.0.slots.len();
        let running = connections.saturating_sub(self.0.turns.available_permits());
        let slots = self.0.slots.iter();
        ScanCounts {
            connections,
            running,
            waiting: self.0.waiting.load(Ordering::Relaxed),
            refused: self.0.refused.load(Ordering::Relaxed),
            stopped: slots.map(|slot| slot.watch.stopped()).sum(),
        }
    }

    /// The connections of all slots.
    pub(super) fn pools(&self) -> impl Iterator<Item = &DatabaseConnection> {
        self.0.slots.iter().map(|slot| slot.reader.pool())
    }
}

/// A place in the line, until it is dropped.
struct Waiting<'a> {
    shared: &'a Shared,
    /// Number of calls in the line, this one included, when it was entered.
    before: usize,
}

impl<'a> Waiting<'a> {
    fn enter(shared: &'a Shared) -> Self {
        let before = shared.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        Self { shared, before }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Scan {
    /// The connection, for reading outside of a transaction.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// A transaction that reads, and sees one moment in all that it reads.
    pub async fn snapshot(&self) -> Result<DatabaseTransaction> {
        self.reader.snapshot().await
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        let Some(turn) = self.turn.take() else {
            return;
        };
        turn.slot.watch.give_up();
        // Outside of a runtime nothing waits for a turn.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(turn.settle());
        }
    }
}

impl Turn {
    /// Keeps the slot until its connection is back in its pool: the query that ran over it has ended then.
    async fn settle(self) {
        let back = self.slot.reader.pool().ping();
        if !matches!(timeout(SETTLING, back).await, Ok(Ok(()))) {
            tracing::debug!("the connection of a scan has not come back yet");
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let free = self.scans.0.free.lock();
        let mut free = free;
        free.push(self.slot.clone());
    }
}
