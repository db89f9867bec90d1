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

pub(super) use self::cancel::QueryCanceller;
use super::reader::{Reachability, Reader};
use crate::{
    deadline,
    error::{Error, Result},
};

mod cancel;

/// Maximum wait for a slot. A call with an earlier deadline waits until its deadline.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(30);

/// Maximum number of calls waiting for a slot.
const MAX_WAITING_CALLS: usize = 200;

/// Time for a connection to return to its pool. Afterwards the slot passes to the next scan, which
/// then waits for the connection.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Slots for scans. Clones share the slots.
#[derive(Debug, Clone)]
pub(super) struct Scans(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// One permit per slot, granted in order of arrival.
    permits: Arc<Semaphore>,
    slots: Vec<Slot>,
    free: Mutex<Vec<Slot>>,
    reachability: Reachability,
    waiting: AtomicUsize,
    refused: AtomicU64,
}

/// Connection for scans: a pool of one, so that the state of the pool is the state of the
/// connection.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) reader: Reader,
    pub(super) canceller: QueryCanceller,
}

/// Right to run scans over one connection.
///
/// The connection serves one query at a time, so a transaction must end before the next read.
/// Dropping the scan cancels its query within the database.
#[derive(Debug)]
pub struct Scan {
    reader: Reader,
    /// Slot of the scan; absent for a short read.
    guard: Option<SlotGuard>,
}

/// Slot in use, returned when dropped.
#[derive(Debug)]
struct SlotGuard {
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

impl Scans {
    /// Creates the queue for these slots.
    pub(super) fn new(slots: Vec<Slot>, reachability: Reachability) -> Self {
        Self(Arc::new(Shared {
            permits: Arc::new(Semaphore::new(slots.len())),
            free: Mutex::new(slots.clone()),
            slots,
            reachability,
            waiting: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    /// Waits for a slot and begins a scan.
    pub(super) async fn begin(&self) -> Result<Scan> {
        let guard = self.acquire().await?;
        Ok(Scan { reader: guard.slot.reader.clone(), guard: Some(guard) })
    }

    /// Waits for a slot.
    async fn acquire(&self) -> Result<SlotGuard> {
        let (started_at, deadline) = (Instant::now(), deadline::current());
        let latest = started_at + MAX_WAIT;
        let until = deadline.map_or(latest, |deadline| latest.min(deadline));
        let queued = QueuedCall::enter(&self.0);
        let permits = self.0.permits.clone();
        let permit = if let Ok(permit) = permits.clone().try_acquire_owned() {
            permit
        } else if queued.position > MAX_WAITING_CALLS {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
            let waiting = queued.position - 1;
            return Err(Error::ScanQueueFull { waiting });
        } else {
            match timeout_at(until, permits.acquire_owned()).await {
                Ok(permit) => permit.map_err(Error::internal)?,
                Err(_) => return Err(self.refuse(started_at).await),
            }
        };
        drop(queued);
        let slot = self.0.free.lock().pop();
        // The number of permits equals the number of slots.
        let slot = slot.ok_or_else(|| Error::internal("no scan slot is free"))?;
        slot.canceller.begin(deadline);
        Ok(SlotGuard { scans: self.clone(), slot, _permit: permit })
    }

    /// Returns the error for a call whose wait timed out.
    async fn refuse(&self, started_at: Instant) -> Error {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        let waited = started_at.elapsed();
        if !self.0.reachability.is_reachable().await {
            return Error::DatabaseAway;
        }
        Error::ScanTimeout { waited }
    }

    /// Returns the scan statistics.
    pub(super) fn counts(&self) -> ScanCounts {
        let connections = self.0.slots.len();
        let running = connections.saturating_sub(self.0.permits.available_permits());
        let slots = self.0.slots.iter();
        ScanCounts {
            connections,
            running,
            waiting: self.0.waiting.load(Ordering::Relaxed),
            refused: self.0.refused.load(Ordering::Relaxed),
            stopped: slots.map(|slot| slot.canceller.stopped()).sum(),
        }
    }

    /// Returns the connections of all slots.
    pub(super) fn pools(&self) -> impl Iterator<Item = &DatabaseConnection> {
        self.0.slots.iter().map(|slot| slot.reader.pool())
    }
}

/// Entry in the queue, counted until dropped.
struct QueuedCall<'a> {
    shared: &'a Shared,
    /// Number of queued calls at the time of entry, including this call.
    position: usize,
}

impl<'a> QueuedCall<'a> {
    fn enter(shared: &'a Shared) -> Self {
        let position = shared.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        Self { shared, position }
    }
}

impl Drop for QueuedCall<'_> {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Scan {
    /// Creates a scan over connections for short reads, without a slot.
    pub(super) fn without_slot(reader: Reader) -> Self {
        Self { reader, guard: None }
    }

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
        let Some(guard) = self.guard.take() else {
            return;
        };
        guard.slot.canceller.abandon();
        // Without a runtime no call can wait for a slot.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(guard.release());
        }
    }
}

impl SlotGuard {
    /// Keeps the slot until its connection has returned to the pool, which means that the query has
    /// ended.
    async fn release(self) {
        let back = self.slot.reader.pool().ping();
        if !matches!(timeout(RELEASE_TIMEOUT, back).await, Ok(Ok(()))) {
            tracing::debug!("the connection of a scan has not returned to its pool yet");
        }
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        let mut free = self.scans.0.free.lock();
        free.push(self.slot.clone());
    }
}
