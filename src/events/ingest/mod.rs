//! Ingest: evaluation by the rules, group commit, and the transaction that stores events and raises alerts.

pub(super) mod batch;
pub(super) mod committer;
pub(super) mod evaluation;
pub(super) mod lookup;
pub(super) mod metrics;
pub(super) mod raise;
pub(super) mod replay;
pub(super) mod sources;
pub(super) mod stages;
pub(super) mod suppressions;
