//! Events: ingest, deduplication of requests, alert creation, and `EventService`.

mod batch;
mod check;
mod committer;
mod convert;
mod evaluation;
mod lookup;
mod metrics;
mod raise;
mod replay;
pub mod retention;
mod service;
mod sources;
mod stages;
mod suppressions;

pub use committer::Committer;
pub use metrics::IngestMetrics;
pub use service::Events;
