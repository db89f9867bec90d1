//! Transport of the gRPC listener: what HTTP/2 grants each client, and what reflection tells.

use tonic::transport::Server as Grpc;
use tonic_reflection::server::Builder as Reflection;

use crate::{
    config::Settings,
    metrics::Limits,
    pb::FILE_DESCRIPTOR_SET,
    rpc::limits::{call_limit::CallLimit, snapshots::SnapshotMemory, unfinished::Unfinished},
};

/// The methods whose calls are counted.
pub(super) const CALLED: [&[u8]; 4] = [
    FILE_DESCRIPTOR_SET,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// Bytes of one call that a client may send before the server has read them.
const CALL_WINDOW: u32 = 1 << 20;

/// Bytes of all calls of a connection that a client may send before the server has read them.
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Largest size of the headers of a call, in bytes. They are kept until the call is answered.
const HEADERS: u32 = 8 << 10;

/// A server with the limits of a connection.
pub(super) fn builder(settings: &Settings) -> Grpc {
    Grpc::builder()
        .max_concurrent_streams(Some(settings.max_connection_streams))
        .initial_stream_window_size(Some(CALL_WINDOW))
        .initial_connection_window_size(Some(CONNECTION_WINDOW))
        .http2_max_header_list_size(Some(HEADERS))
        .http2_keepalive_interval(Some(settings.keepalive_interval))
        .http2_keepalive_timeout(Some(settings.keepalive_timeout))
}

/// The limits that all connections share.
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

/// The services that reflection describes, and what the details of errors are made of.
pub(super) fn reflection<'a>() -> Reflection<'a> {
    Reflection::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}
