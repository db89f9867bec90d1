//! Condition of each GPU: derived states, memory pressure, and debouncing of their changes.

pub(super) mod debounce;
pub(super) mod pressure;
pub(super) mod tracker;
