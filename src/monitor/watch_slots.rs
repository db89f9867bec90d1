//! Limit of the watches and worker streams that are open at the same time.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// Slots of watches and worker streams, for all services together. Clones share the slots.
#[derive(Debug, Clone)]
pub struct WatchSlots {
    free: Arc<Semaphore>,
    limit: usize,
}

impl WatchSlots {
    /// Creates `limit` slots.
    pub fn new(limit: usize) -> Self {
        let free = Arc::new(Semaphore::new(limit));
        Self { free, limit }
    }

    /// Takes a slot until the permit is dropped. Fails if no slot is free.
    pub fn acquire(&self) -> Result<OwnedSemaphorePermit> {
        let permit = self.free.clone().try_acquire_owned();
        permit.map_err(|_| Error::TooManyWatches { limit: self.limit })
    }

    /// Number of slots.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Number of slots in use.
    pub fn in_use(&self) -> usize {
        self.limit - self.free.available_permits()
    }
}
