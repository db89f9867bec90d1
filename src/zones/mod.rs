//! Camera zones: the parts of a picture that mean something.

mod check;
mod counts;
mod list;
mod live;
mod locate;
mod place;
mod service;
mod shape;
mod sides;

pub use live::{LiveZones, ZoneSet};
pub use place::{Place, Unplaced};
pub use service::CameraZones;
pub use shape::{Hit, Zone};
