//! What all requests share of the database, compiled once and replaced as a whole when it changes.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Mutex;

/// The newest of its kind that was read.
#[derive(Debug, Default)]
pub struct Live<T> {
    current: RwLock<Arc<T>>,
    /// Held while reading, so that the one that is read last replaces those read before.
    reading: Mutex<()>,
}

impl<T> Live<T> {
    /// The newest one.
    pub fn current(&self) -> Arc<T> {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces it by what `read` gives; what was committed before the call is in force after it.
    pub async fn reload<E>(&self, read: impl Future<Output = Result<T, E>>) -> Result<(), E> {
        let _reading = self.reading.lock().await;
        let new = Arc::new(read.await?);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = new;
        Ok(())
    }
}
