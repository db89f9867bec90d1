//! Batching and caching shared by all families: group commit, coalesced lookups, and in-memory
//! copies of settings.

pub mod group_commit;
pub mod live;
pub mod loader;
