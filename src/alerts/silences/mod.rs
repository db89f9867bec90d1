//! Silences, which suppress alerts for a time, and the list of suppressed alerts.

mod check;
mod filter;
mod live;
mod service;
mod suppressions;

pub use live::{LiveSilences, SilenceSet};
pub use service::Silences;
