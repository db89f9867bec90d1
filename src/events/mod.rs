//! Events: what cameras saw, taken in with everything that follows from it.

mod batch;
mod check;
mod committer;
mod convert;
mod counts;
mod lookup;
mod raise;
mod replay;
pub mod retention;
mod service;
mod sources;
mod suppressed;

pub use committer::Committer;
pub use counts::Counts;
pub use service::Events;
