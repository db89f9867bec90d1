//! Notification channels: `NotificationChannelService`, the validation of channels, and their rows.

pub(super) mod change_record;
pub(super) mod check;
pub(super) mod convert;
pub(super) mod service;
