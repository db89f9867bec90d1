//! What all requests share of the database, compiled once and replaced when it changes.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::{Mutex, MutexGuard};

/// The newest of its kind that was read.
#[derive(Debug, Default)]
pub struct Live<T> {
    current: RwLock<Arc<T>>,
    /// Held while reading, so that the one that is read last replaces those read before.
    reading: Mutex<()>,
}

/// The right to read the next one. What was committed before it was given is in force once it is used.
#[derive(Debug)]
pub struct Turn<'a, T> {
    live: &'a Live<T>,
    _reading: MutexGuard<'a, ()>,
}

impl<T> Live<T> {
    /// The newest one.
    pub fn current(&self) -> Arc<T> {
        let current = self.current.read();
        current.clone()
    }

    /// Replaces it by what `read` gives; what was committed before the call is in force after it.
    pub async fn reload<E>(&self, read: impl Future<Output = Result<T, E>>) -> Result<(), E> {
        let turn = self.turn().await;
        turn.replace(read.await?);
        Ok(())
    }

    /// Waits until nobody else reads. Until the turn is used or dropped, [`Self::current`] stays the same.
    pub async fn turn(&self) -> Turn<'_, T> {
        Turn {
            _reading: self.reading.lock().await,
            live: self,
        }
    }
}

impl<T> Turn<'_, T> {
    /// Replaces the current one.
    pub fn replace(self, new: T) {
        let new = Arc::new(new);
        let mut current = self.live.current.write();
        *current = new;
    }
}
