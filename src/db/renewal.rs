//! Renewal of the connections of a pool.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Time before which opened connections must not be reused. Clones share the value.
#[derive(Debug, Clone, Default)]
pub(super) struct Renewal(Arc<Mutex<Option<Instant>>>);

impl Renewal {
    /// Marks all open connections to be closed before reuse.
    pub(super) fn renew(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    /// Returns true if a connection of this age may be used.
    pub(super) fn allows(&self, age: Duration) -> bool {
        let renewed = self.0.lock();
        renewed.is_none_or(|renewed| age <= renewed.elapsed())
    }
}
