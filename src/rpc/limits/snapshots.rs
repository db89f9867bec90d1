//! Memory of snapshots: the initial content of watches, kept until every client has read it.
//!
//! Clients read at different speeds, so the memory of all snapshots is bounded together. A snapshot
//! that is not read in time gives way to newer snapshots.

use std::{
    collections::VecDeque,
    fmt::Debug,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use crate::error::{Error, Result};

/// Time for clients to read a snapshot, after which its memory may be reclaimed.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Error message for exhausted memory.
const NO_MEMORY: &str = "the memory for snapshots is exhausted; retry later";

/// Error message for a reclaimed snapshot.
const RECLAIMED: &str = "the snapshot was not read in time, and its memory was reclaimed for newer snapshots";

/// Memory shared by all snapshots. Clones share the state.
#[derive(Debug, Clone)]
pub struct SnapshotMemory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: u64,
    usage: Mutex<Usage>,
}

#[derive(Debug, Default)]
struct Usage {
    bytes: u64,
    /// Snapshots that clients may still read, oldest first.
    stored: VecDeque<(Instant, Weak<dyn Reclaim>)>,
}

/// Snapshot whose memory can be reclaimed.
trait Reclaim: Debug + Send + Sync {
    fn reclaim(&self);
}

impl SnapshotMemory {
    /// Creates a limit in bytes for all snapshots together. A single snapshot may exceed the limit
    /// if no other exists.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Shared { limit, usage: Mutex::default() }))
    }

    /// Returns the used and total memory, in bytes.
    pub fn memory(&self) -> (u64, u64) {
        (self.usage().bytes, self.0.limit)
    }

    /// Creates an empty reservation for a snapshot to be read from the database.
    pub fn reserve(&self) -> Reservation {
        Reservation { memory: self.clone(), bytes: 0 }
    }

    /// Stores a snapshot until its clients drop it, or until the memory is reclaimed.
    pub fn store<T: Debug + Send + Sync + 'static>(&self, items: Vec<T>, reservation: Reservation) -> Arc<Snapshot<T>> {
        let snapshot = Arc::new(Snapshot(Mutex::new(Some((items, reservation)))));
        let stored: Arc<dyn Reclaim> = snapshot.clone();
        let mut usage = self.usage();
        usage.stored.retain(|(_, stored)| stored.strong_count() > 0);
        let stored = Arc::downgrade(&stored);
        usage.stored.push_back((Instant::now(), stored));
        drop(usage);
        snapshot
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.0.usage.lock()
    }
}

/// Memory of a snapshot, released when dropped.
#[derive(Debug)]
pub struct Reservation {
    memory: SnapshotMemory,
    bytes: u64,
}

impl Reservation {
    /// Reserves more memory. Snapshots that were not read in time are reclaimed if needed.
    pub fn grow(&mut self, bytes: u64) -> Result<()> {
        loop {
            let mut usage = self.memory.usage();
            let is_only = usage.bytes == self.bytes;
            if is_only || usage.bytes + bytes <= self.memory.0.limit {
                usage.bytes += bytes;
                self.bytes += bytes;
                return Ok(());
            }
            usage.stored.retain(|(_, stored)| stored.strong_count() > 0);
            let oldest = usage.stored.pop_front_if(|(since, _)| since.elapsed() >= READ_TIMEOUT);
            drop(usage);
            let Some((_, oldest)) = oldest else {
                return Err(Error::Busy(NO_MEMORY));
            };
            if let Some(oldest) = oldest.upgrade() {
                oldest.reclaim();
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.usage().bytes -= self.bytes;
    }
}

/// Snapshot that clients are reading.
#[derive(Debug)]
pub struct Snapshot<T>(Mutex<Option<(Vec<T>, Reservation)>>);

impl<T: Clone> Snapshot<T> {
    /// Returns the item at an index; none beyond the end. Fails if the memory was reclaimed.
    pub fn item(&self, index: usize) -> Result<Option<T>> {
        let content = self.0.lock();
        let (items, _) = content.as_ref().ok_or(Error::Busy(RECLAIMED))?;
        Ok(items.get(index).cloned())
    }
}

impl<T: Debug + Send + Sync> Reclaim for Snapshot<T> {
    fn reclaim(&self) {
        let content = self.0.lock().take();
        drop(content);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_share_the_memory_and_one_alone_may_exceed_it() {
        let memory = SnapshotMemory::new(100);
        let mut first = memory.reserve();
        first.grow(150).unwrap();
        let first = memory.store(vec![1, 2], first);
        let mut second = memory.reserve();
        assert!(matches!(second.grow(1), Err(Error::Busy(NO_MEMORY))));
        assert_eq!(first.item(1).unwrap(), Some(2));
        assert_eq!(first.item(2).unwrap(), None);
        drop(first);
        second.grow(60).unwrap();
        let mut third = memory.reserve();
        third.grow(40).unwrap();
        third.grow(1).unwrap_err();
        assert_eq!(memory.memory(), (100, 100));
        drop((second, third));
        assert_eq!(memory.memory(), (0, 100));
    }

    #[test]
    fn what_is_not_read_in_time_is_taken() {
        let memory = SnapshotMemory::new(100);
        let mut slow = memory.reserve();
        slow.grow(100).unwrap();
        let slow = memory.store(vec![1], slow);
        let mut next = memory.reserve();
        next.grow(1).unwrap_err();
        if let Some((since, _)) = memory.usage().stored.front_mut() {
            *since -= READ_TIMEOUT;
        }
        next.grow(100).unwrap();
        assert!(matches!(slow.item(0), Err(Error::Busy(RECLAIMED))));
        assert_eq!(memory.memory(), (100, 100));
    }
}
