//! Read-only queries of jobs: single jobs, lists, filters, counts, percentiles and statistics.

pub(super) mod counts;
pub(super) mod filter;
pub(super) mod get;
pub(super) mod list;
pub(super) mod percentiles;
pub(super) mod stats;
pub(super) mod timing;
