//! Cameras: where everything that is seen comes from.

mod service;

pub use service::Cameras;
