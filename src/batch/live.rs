//! In-memory copies of database settings, shared by all requests and replaced after a change.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::{Mutex, MutexGuard};

/// Shared copy of the newest value that was read.
#[derive(Debug, Default)]
pub struct Live<T> {
    current: RwLock<Arc<T>>,
    /// Held during a read, so that concurrent reads cannot replace a newer value by an older value.
    reading: Mutex<()>,
}

/// Exclusive right to read and replace the value. Changes committed before the guard was taken are
/// in force after the replacement.
#[derive(Debug)]
pub struct ReloadGuard<'a, T> {
    live: &'a Live<T>,
    _reading: MutexGuard<'a, ()>,
}

impl<T> Live<T> {
    /// Returns the newest value.
    pub fn current(&self) -> Arc<T> {
        let current = self.current.read();
        current.clone()
    }

    /// Replaces the value by the result of `read`. Changes committed before the call are in force
    /// afterwards.
    pub async fn reload<E>(&self, read: impl Future<Output = Result<T, E>>) -> Result<(), E> {
        let guard = self.begin_reload().await;
        guard.replace(read.await?);
        Ok(())
    }

    /// Waits for other reloads to finish. [`Self::current`] stays the same until the guard is used
    /// or dropped.
    pub async fn begin_reload(&self) -> ReloadGuard<'_, T> {
        ReloadGuard { _reading: self.reading.lock().await, live: self }
    }
}

impl<T> ReloadGuard<'_, T> {
    /// Replaces the current value.
    pub fn replace(self, new: T) {
        let new = Arc::new(new);
        let mut current = self.live.current.write();
        *current = new;
    }
}
