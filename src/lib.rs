//! Watchpost: the operations backend of an AI camera system, as one gRPC service.
//!
//! See ARCHITECTURE.md for an overview. The modules follow in reading order.

pub mod batch;
pub mod config;

pub mod server;

pub mod metrics;

pub mod health;

pub mod monitor;

pub mod events;

pub mod notifications;

pub mod jobs;

pub mod alerts;

pub mod zones;

pub mod cameras;

pub mod gpu;

pub mod topics;

pub mod feed;

pub mod clock;

pub mod time_zones;

pub mod deadline;

pub mod rpc;

pub mod db;

pub mod entity;

pub mod error;

pub mod top;

pub mod jobs_watch;

pub mod log;

pub mod escape;

mod client;

/// The API, generated from `proto/`. The documentation is in the proto files.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod pb {
    tonic::include_proto!("watchpost.v1");

    /// File descriptors for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("watchpost_descriptor");
}
