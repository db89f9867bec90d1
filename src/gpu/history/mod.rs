//! History of the GPUs: roll-ups of samples, their aggregation, and their retention.
//!
//! A roll-up is one row of `gpu_stats_minutes`. The row holds all samples of one GPU in one minute
//! of UTC in the format of `digest`, without loss except for the order of the values.
//!
//! Triggers mark the minutes in which rows of `gpu_stats` are written (`gpu_stats_pending`), and
//! `rollup` processes the marks. A minute without a mark has a complete roll-up or no samples.
//!
//! `aggregate` reads marks, roll-ups and samples in one snapshot, and encodes samples as digests.
//! The answer is therefore the same at any state of the roll-ups. `retention` deletes old samples
//! and roll-ups.

pub mod retention;
pub mod rollup;

pub(super) mod aggregate;

mod digest;
mod gpu_list;
mod queries;
mod request;
mod sample;
mod series;
mod timeline;
mod value_counts;
