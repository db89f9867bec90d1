//! Transport of the gRPC listener: HTTP/2 limits, and reflection.

use tonic::transport::Server as Grpc;
use tonic_reflection::server::Builder as Reflection;

use crate::{
    config::Settings,
    metrics::Limits,
    pb::FILE_DESCRIPTOR_SET,
    rpc::limits::{call_limit::CallLimit, snapshots::SnapshotMemory, unfinished::UnfinishedRequests},
};

/// Descriptors of all methods whose calls are counted.
pub(super) const CALL_DESCRIPTORS: [&[u8]; 4] = [
    FILE_DESCRIPTOR_SET,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// Flow-control window of a call, in bytes.
const CALL_WINDOW_BYTES: u32 = 1 << 20;

/// Flow-control window of a connection, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// Maximum size of the headers of a call, in bytes. Headers are kept until the answer.
const MAX_HEADER_BYTES: u32 = 8 << 10;

/// Builds a server with the limits per connection.
pub(super) fn builder(settings: &Settings) -> Grpc {
    Grpc::builder()
        .max_concurrent_streams(Some(settings.max_connection_streams))
        .initial_stream_window_size(Some(CALL_WINDOW_BYTES))
        .initial_connection_window_size(Some(CONNECTION_WINDOW_BYTES))
        .http2_max_header_list_size(Some(MAX_HEADER_BYTES))
        .http2_keepalive_interval(Some(settings.keepalive_interval))
        .http2_keepalive_timeout(Some(settings.keepalive_timeout))
}

/// Builds the limits shared by all connections.
pub(super) fn limits(settings: &Settings) -> Limits {
    Limits {
        calls: CallLimit::new(settings.max_calls as usize),
        calls_per_connection: settings.max_connection_streams,
        unfinished: UnfinishedRequests::new(
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
