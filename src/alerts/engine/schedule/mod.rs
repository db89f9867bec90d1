//! Schedules of rules: weekly windows of local time.

mod preview;
mod weekly;
mod windows;

pub use self::{
    preview::Preview,
    weekly::{Schedule, WallClock, from_proto, to_proto},
    windows::Window,
};
