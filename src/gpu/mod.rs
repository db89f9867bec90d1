//! GPU telemetry: samples every GPU of this host through NVML, keeps the newest samples in memory,
//! stores all samples, and serves both.
//!
//! `sampling::fleet` finds the GPUs and starts one `sampler` thread per GPU, because calls into the
//! driver block and may never return. Samples go to `live` and, through a bounded queue, to
//! `store::writer`. In `reporting::agent` the samples go to a server instead, where
//! `reporting::report` receives them. `health::tracker` derives the condition of each GPU and its
//! changes, which become `events`. `store::claims` allows one host at a time to report a GPU.

mod columns;
mod condition;
mod events;
mod health;
mod launch;
pub mod live;
mod nvml;
mod pci_address;
pub mod reporting;
mod sampling;
mod service;
mod settings;
mod store;
mod value;

pub mod history;
pub mod throttle;

pub use self::{
    columns::has_values,
    condition::Condition,
    events::EventCounts,
    launch::{GpuTasks, start},
    live::{LiveGpus, Origin, Reading, present},
    nvml::{
        cost::{Cost, Costs},
        plan::Tiers,
    },
    reporting::report::Reports,
    sampling::inference::Detections,
    service::GpuStats,
    settings::{MAX_QUEUED_SAMPLES, Settings},
};
