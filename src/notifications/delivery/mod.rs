//! Delivery of alerts: the outbox of queued deliveries, the deliverer, back-off between attempts, and
//! `DeliveryService`.

pub(super) mod attempt;
pub(super) mod backoff;
pub(super) mod counts;
pub(super) mod deliverer;
pub(super) mod message;
pub(super) mod outbox;
pub(super) mod outcome;
pub(super) mod service;
