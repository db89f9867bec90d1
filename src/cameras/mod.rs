//! Cameras: the sources of detections and events.

mod service;

pub use service::Cameras;
