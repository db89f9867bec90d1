//! Notifications: the channels by which alerts are told, and the ledger of what was and is to be told.

mod attempt;
mod check;
mod convert;
mod counts;
mod deliverer;
mod deliveries;
mod email;
mod key_file;
mod keys;
mod ledger;
mod message;
pub(crate) mod reseal;
mod schedule;
mod scrub;
mod secrets;
mod service;
mod targets;
mod webhook;

pub use self::{
    attempt::Senders, counts::Counts, deliverer::Deliverer, deliveries::Deliveries, keys::KeyUse,
    schedule::Backoff, secrets::Keyring, service::NotificationChannels, targets::Targets,
};
