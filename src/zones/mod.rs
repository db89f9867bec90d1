//! Camera zones: named areas of a camera picture.

mod check;
mod edges;
mod filter;
mod hit_counts;
mod live;
mod locate;
mod placement;
mod service;
mod shape;

pub use live::{LiveZones, ZoneSet};
pub use placement::{Placement, PlacementError};
pub use service::CameraZones;
pub use shape::{Hit, Zone};
