//! The time by which leases and jobs are judged: that of the database, see [`crate::clock`].

use chrono::{DateTime, Utc};

/// The clock that decides.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock;

impl Clock {
    /// The time, in whole microseconds.
    #[expect(clippy::unused_self, reason = "who has a clock goes by it")]
    pub(super) fn now(&self) -> DateTime<Utc> {
        crate::clock::now()
    }
}
