//! Senders: delivery of a message by webhook or mail, and the addresses allowed as targets.

pub(super) mod email;
pub(super) mod targets;
pub(super) mod url;
pub(super) mod webhook;
