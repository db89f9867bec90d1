//! Notification channels: `NotificationChannelService`, the bounds of a channel, and its rows.

pub(super) mod check;
pub(super) mod convert;
pub(super) mod service;
