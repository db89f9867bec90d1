//! Lifecycle of an alert: `AlertService`, creation, status changes, statistics and the delivery
//! queue.

pub(super) mod bulk;
pub mod change;
pub(super) mod create;
pub mod deliveries;
pub(super) mod filter;
pub mod service;
pub(super) mod stats;
pub mod transition;
