//! Notifications: channels for the delivery of alerts, and the outbox of deliveries.

mod channels;
mod delivery;
pub mod secrets;
mod senders;

pub use self::{
    channels::service::NotificationChannels,
    delivery::{attempt::Senders, backoff::Backoff, counts::Counts, deliverer::Deliverer, service::Deliveries},
    secrets::{Keyring, keys::KeyUse},
    senders::targets::Targets,
};
