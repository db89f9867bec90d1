//! Batching and caching shared by all families: group commit, coalesced lookups, and copies of settings kept up to
//! date.

pub mod group_commit;
pub mod live;
pub mod loader;
