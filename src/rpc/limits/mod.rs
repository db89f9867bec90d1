//! Limits on what clients may cost: memory of requests, calls under way, unfinished requests, and memory of
//! snapshots.

pub mod admission;
pub mod call_limit;
pub(super) mod framing;
pub mod shape;
pub mod snapshots;
pub mod unfinished;
