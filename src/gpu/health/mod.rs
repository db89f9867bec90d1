//! The condition of each GPU: derived states, memory pressure, and debouncing of their changes.

pub(super) mod condition;
pub(super) mod debounce;
pub(super) mod pressure;
