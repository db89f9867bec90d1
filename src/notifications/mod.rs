//! Notifications: the channels by which alerts are told, and the ledger of what was and is to be told.

mod channels;
mod delivery;
pub mod secrets;
mod senders;

pub use self::{
    channels::service::NotificationChannels,
    delivery::{
        attempt::Senders, backoff::Backoff, counts::Counts, deliverer::Deliverer,
        service::Deliveries,
    },
    secrets::{Keyring, keys::KeyUse},
    senders::targets::Targets,
};
