//! Newest readings in memory, and their exchange with other processes.

mod live_gpus;
pub mod relay;

pub use self::live_gpus::{LiveGpus, Origin, Reading, present};
