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
const READ_WITHIN: Duration = Duration::from_secs(30);

/// Error message for exhausted memory.
const NO_MEMORY: &str =
    "the snapshots that clients are reading take all the memory that this server gives them";

/// Error message for a reclaimed snapshot.
const TAKEN: &str = "the snapshot was not read in time, and newer ones needed its memory";

/// Memory shared by all snapshots. Clones share the state.
#[derive(Debug, Clone)]
pub struct SnapshotMemory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: u64,
    accounts: Mutex<Accounts>,
}

#[derive(Debug, Default)]
struct Accounts {
    bytes: u64,
    /// Snapshots that clients may still read, oldest first.
    kept: VecDeque<(Instant, Weak<dyn Reclaim>)>,
}

/// Snapshot whose memory can be reclaimed.
trait Reclaim: Debug + Send + Sync {
    fn reclaim(&self);
}

impl SnapshotMemory {
    /// Creates a limit in bytes for all snapshots together. A single snapshot may exceed the limit
    /// if no other exists.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Shared {
            limit,
            accounts: Mutex::default(),
        }))
    }

    /// Returns the used and total memory, in bytes.
    pub fn memory(&self) -> (u64, u64) {
        (self.accounts().bytes, self.0.limit)
    }

    /// Creates an empty reservation for a snapshot to be read from the database.
    pub fn claim(&self) -> Claim {
        Claim {
            memory: self.clone(),
            bytes: 0,
        }
    }

    /// Stores a snapshot until its clients drop it, or until the memory is reclaimed.
    pub fn keep<T: Debug + Send + Sync + 'static>(
        &self,
        items: Vec<T>,
        claim: Claim,
    ) -> Arc<Snapshot<T>> {
        let snapshot = Arc::new(Snapshot(Mutex::new(Some((items, claim)))));
        let kept: Arc<dyn Reclaim> = snapshot.clone();
        let mut accounts = self.accounts();
        accounts.kept.retain(|(_, kept)| kept.strong_count() > 0);
        let kept = Arc::downgrade(&kept);
        accounts.kept.push_back((Instant::now(), kept));
        drop(accounts);
        snapshot
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        let accounts = self.0.accounts.lock();
        accounts
    }
}

/// Memory of a snapshot, released when dropped.
#[derive(Debug)]
pub struct Claim {
    memory: SnapshotMemory,
    bytes: u64,
}

impl Claim {
    /// Reserves more memory. Snapshots that were not read in time are reclaimed if needed.
    pub fn grow(&mut self, bytes: u64) -> Result<()> {
        loop {
            let mut accounts = self.memory.accounts();
            let is_alone = accounts.bytes == self.bytes;
            if is_alone || accounts.bytes + bytes <= self.memory.0.limit {
                accounts.bytes += bytes;
                self.bytes += bytes;
                return Ok(());
            }
            accounts.kept.retain(|(_, kept)| kept.strong_count() > 0);
            let oldest = accounts
                .kept
                .pop_front_if(|(since, _)| since.elapsed() >= READ_WITHIN);
            drop(accounts);
            let Some((_, oldest)) = oldest else {
                return Err(Error::Busy(NO_MEMORY));
            };
            if let Some(oldest) = oldest.upgrade() {
                oldest.reclaim();
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.memory.accounts().bytes -= self.bytes;
    }
}

/// Snapshot that clients are reading.
#[derive(Debug)]
pub struct Snapshot<T>(Mutex<Option<(Vec<T>, Claim)>>);

impl<T: Clone> Snapshot<T> {
    /// Returns the item at an index; none beyond the end. Fails if the memory was reclaimed.
    pub fn item(&self, at: usize) -> Result<Option<T>> {
        let content = self.0.lock();
        let (items, _) = content.as_ref().ok_or(Error::Busy(TAKEN))?;
        Ok(items.get(at).cloned())
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
        let mut first = memory.claim();
        first.grow(150).unwrap();
        let first = memory.keep(vec![1, 2], first);
        let mut second = memory.claim();
        assert!(matches!(second.grow(1), Err(Error::Busy(NO_MEMORY))));
        assert_eq!(first.item(1).unwrap(), Some(2));
        assert_eq!(first.item(2).unwrap(), None);
        drop(first);
        second.grow(60).unwrap();
        let mut third = memory.claim();
        third.grow(40).unwrap();
        third.grow(1).unwrap_err();
        assert_eq!(memory.memory(), (100, 100));
        drop((second, third));
        assert_eq!(memory.memory(), (0, 100));
    }

    #[test]
    fn what_is_not_read_in_time_is_taken() {
        let memory = SnapshotMemory::new(100);
        let mut slow = memory.claim();
        slow.grow(100).unwrap();
        let slow = memory.keep(vec![1], slow);
        let mut next = memory.claim();
        next.grow(1).unwrap_err();
        if let Some((since, _)) = memory.accounts().kept.front_mut() {
            *since -= READ_WITHIN;
        }
        next.grow(100).unwrap();
        assert!(matches!(slow.item(0), Err(Error::Busy(TAKEN))));
        assert_eq!(memory.memory(), (100, 100));
    }
}
