//! Limits on the cost of clients: memory of requests, concurrent calls, incomplete requests, and
//! memory of snapshots.

pub mod admission;
pub mod call_limit;
pub(super) mod framing;
pub mod layout;
pub mod snapshots;
pub mod unfinished;
