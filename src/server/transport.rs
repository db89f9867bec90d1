//! Transport of the gRPC listener: HTTP/2 limits, and reflection.

use tonic::transport::Server as Grpc;
use tonic_reflection::server::Builder as Reflection;

use crate::{
    config::Settings,
    metrics::Limits,
    pb::FILE_DESCRIPTOR_SET,
    rpc::limits::{call_limit::CallLimit, snapshots::SnapshotMemory, unfinished::Unfinished},
};

/// Descriptors of all methods whose calls are counted.
pub(super) const CALLED: [&[u8]; 4] = [
    FILE_DESCRIPTOR_SET,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// Flow-control window of a call, in bytes.
const CALL_WINDOW: u32 = 1 << 20;

/// Flow-control window of a connection, in bytes.
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Maximum size of the headers of a call, in bytes. Headers are kept until the answer.
const HEADERS: u32 = 8 << 10;

/// Builds a server with the limits per connection.
pub(super) fn builder(settings: &Settings) -> Grpc {
    Grpc::builder()
        .max_concurrent_streams(Some(settings.max_connection_streams))
        .initial_stream_window_size(Some(CALL_WINDOW))
        .initial_connection_window_size(Some(CONNECTION_WINDOW))
        .http2_max_header_list_size(Some(HEADERS))
        .http2_keepalive_interval(Some(settings.keepalive_interval))
        .http2_keepalive_timeout(Some(settings.keepalive_timeout))
}

/// Builds the limits shared by all connections.
pub(super) fn limits(settings: &Settings) -> Limits {
    Limits {
        calls: CallLimit::new(settings.max_calls as usize),
        calls_per_connection: settings.max_connection_streams,
        unfinished: Unfinished::new(
            settings.message_timeout,
            settings.unfinished_memory,
            settings.max_message_size as usize,
        ),
        snapshots: SnapshotMemory::new(settings.snapshot_memory),
    }
}

/// Builds the reflection service, including the messages of error details.
pub(super) fn reflection<'a>() -> Reflection<'a> {
    Reflection::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}
