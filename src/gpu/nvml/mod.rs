//! The only module that calls NVML.
//!
//! `session` opens the library and finds GPUs, `card` reads the values of a sample, `plan` decides
//! which calls a sample makes, and `events` waits for events.

mod card;
pub(super) mod cost;
mod epoch;
mod events;
mod failure;
mod fields;
pub(super) mod pcie;
pub(super) mod plan;
mod session;

pub(super) use self::{
    events::Event,
    failure::{Failure, FailureKind},
    session::{GpuSelector, Library, Samples, Session},
};
