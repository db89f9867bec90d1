//! Events: ingest, deduplication of requests, alert creation, and `EventService`.

mod check;
mod convert;
mod ingest;
pub mod retention;
mod service;

pub use self::ingest::committer::Committer;
pub use self::ingest::metrics::IngestMetrics;
pub use service::Events;
