//! The life of an alert: `AlertService`, creation by hand, acknowledgement, dismissal, transitions and queued
//! deliveries.

pub(super) mod bulk;
pub mod change;
pub(super) mod create;
pub mod deliveries;
pub(super) mod filter;
pub mod service;
pub(super) mod stats;
pub mod transition;
