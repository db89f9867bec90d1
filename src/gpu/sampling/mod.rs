//! Sampling on this host: one thread per GPU, the schedule of samples, and the sources of events.

pub(super) mod context;
pub(super) mod event_listener;
pub(super) mod fleet;
pub(super) mod inference;
pub(super) mod kernel_log;
pub(super) mod sampler;
pub(super) mod sampler_state;
pub(super) mod schedule;
pub(super) mod sysfs;
