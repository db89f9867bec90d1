//! Number of watches and streams of workers that may be open at a time.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// Places for watches and streams of workers, of every service. Clones share them.
#[derive(Debug, Clone)]
pub struct Places {
    free: Arc<Semaphore>,
    limit: usize,
}

impl Places {
    /// So many places.
    pub fn new(limit: usize) -> Self {
        let free = Arc::new(Semaphore::new(limit));
        Self { free, limit }
    }

    /// Takes a place, which is free again when what is returned is dropped.
    pub fn take(&self) -> Result<OwnedSemaphorePermit> {
        let place = self.free.clone().try_acquire_owned();
        place.map_err(|_| Error::TooManyWatches { limit: self.limit })
    }

    /// Number of places.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.limit - self.free.available_permits()
    }
}
