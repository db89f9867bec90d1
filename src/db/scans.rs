//! Connections for scans: reads of many rows, which may take long. Scans have separate connections,
//! so that short reads and writes never wait, and are admitted in order of arrival.

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

/// Maximum wait for a slot. A call with an earlier deadline waits until its deadline.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Maximum number of calls waiting for a slot.
const LONGEST_LINE: usize = 200;

/// Time for a connection to return to its pool. Afterwards the slot passes to the next scan, which
/// then waits for the connection.
const SETTLING: Duration = Duration::from_secs(5);

/// Slots for scans. Clones share the slots.
#[derive(Debug, Clone)]
pub(super) struct Scans(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// One permit per slot, granted in order of arrival.
    turns: Arc<Semaphore>,
    slots: Vec<Slot>,
    free: Mutex<Vec<Slot>>,
    life: Life,
    waiting: AtomicUsize,
    refused: AtomicU64,
}

/// Connection for scans: a pool of one, so that the state of the pool is the state of the
/// connection.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) reader: Reader,
    pub(super) watch: Watch,
}

/// Right to run scans over one connection.
///
/// The connection serves one query at a time, so a transaction must end before the next read.
/// Dropping the scan cancels its query within the database.
#[derive(Debug)]
pub struct Scan {
    reader: Reader,
    /// Slot of the scan; absent for a short read.
    turn: Option<Turn>,
}

/// Slot in use.
#[derive(Debug)]
struct Turn {
    scans: Scans,
    slot: Slot,
    _permit: OwnedSemaphorePermit,
}

/// Scan statistics of this process.
#[derive(Debug, Clone, Copy)]
pub struct ScanCounts {
    /// Number of connections for scans.
    pub connections: usize,
    /// Number of running scans, including scans whose query is being cancelled.
    pub running: usize,
    /// Number of calls waiting for a slot.
    pub waiting: usize,
    /// Number of calls refused without a slot, since the start of the process.
    pub refused: u64,
    /// Number of queries cancelled within the database, since the start of the process.
    pub stopped: u64,
}

impl Db {
    /// Waits for a scan slot, in order of arrival. Must not be called while holding a slot.
    ///
    /// Fails with `ScanTimeout` after 30 seconds or at the call's deadline, whichever is earlier.
    /// Fails at once with `ScanQueueFull` if 200 calls wait.
    pub async fn scan(&self) -> Result<Scan> {
        let turn = self.0.scans.turn().await?;
        Ok(Scan {
            reader: turn.slot.reader.clone(),
            turn: Some(turn),
        })
    }

    /// Waits for a scan slot if `is_scan` is true; otherwise uses the connections for short reads.
    pub async fn scan_if(&self, is_scan: bool) -> Result<Scan> {
        if is_scan {
            return self.scan().await;
        }
        Ok(Scan {
            reader: self.0.reader.clone(),
            turn: None,
        })
    }

    /// Returns the scan statistics of this process.
    pub fn scan_counts(&self) -> ScanCounts {
        self.0.scans.counts()
    }
}

impl Scans {
    /// Creates the queue for these slots.
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

    /// Waits for a slot.
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
        // The number of permits equals the number of slots.
        let slot = slot.ok_or_else(|| Error::internal("no slot for a scan is free"))?;
        slot.watch.begin(deadline);
        Ok(Turn {
            scans: self.clone(),
            slot,
            _permit: permit,
        })
    }

    /// Returns the error for a call whose wait timed out.
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

    /// Returns the connections of all slots.
    pub(super) fn pools(&self) -> impl Iterator<Item = &DatabaseConnection> {
        self.0.slots.iter().map(|slot| slot.reader.pool())
    }
}

/// Entry in the queue, counted until dropped.
struct Waiting<'a> {
    shared: &'a Shared,
    /// Number of queued calls at the time of entry, including this call.
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
    /// Returns the connection for reads outside of a transaction.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Begins a read-only transaction with a consistent snapshot.
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
        // Without a runtime no call can wait for a slot.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(turn.settle());
        }
    }
}

impl Turn {
    /// Keeps the slot until its connection has returned to the pool, which means that the query has
    /// ended.
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
