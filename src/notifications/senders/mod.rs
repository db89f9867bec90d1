//! Senders: how a message reaches its receiver, by webhook or mail, and which addresses may be reached.

pub(super) mod email;
pub(super) mod targets;
pub(super) mod webhook;
