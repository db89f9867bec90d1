//! Renewing the connections of a pool.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// The moment after which connections have to have been opened to be used. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Renewal(Arc<Mutex<Option<Instant>>>);

impl Renewal {
    /// Has the connections that are open now closed before they are used again.
    pub(super) fn renew(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    /// Whether a connection of this age may be used.
    pub(super) fn allows(&self, age: Duration) -> bool {
        let renewed = self.0.lock();
        renewed.is_none_or(|renewed| age <= renewed.elapsed())
    }
}
