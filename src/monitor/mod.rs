//! `MonitorService`: the change feed and the live GPU stats, joined into one stream per subscriber.

mod announcement;
mod filter;
mod service;
mod snapshot;
mod watch_slots;
mod wire;

pub use announcement::{Announcement, Feed};
pub use service::{Monitor, Settings, heartbeat_interval};
pub use snapshot::Snapshots;
pub use watch_slots::WatchSlots;
pub use wire::MonitorServer;
