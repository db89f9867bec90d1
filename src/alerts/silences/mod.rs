//! Silences, which hold alerts back for a time, and the list of what was held back.

mod check;
mod list;
mod live;
mod service;
mod suppressions;

pub use live::{LiveSilences, SilenceSet};
pub use service::Silences;
