//! gRPC service of the monitor, which sends encoded bytes that all subscribers share.
//!
//! The generated server would encode each message again for each subscriber.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes};
use futures_util::Stream;
use prometheus::IntCounter;
use tonic::{
    Request, Response, Status,
    body::Body,
    codec::{BufferSettings, Codec, CompressionEncoding, EnabledCompressionEncodings, EncodeBuf, Encoder},
    server::{Grpc, NamedService, ServerStreamingService, UnaryService},
};
use tower::Service;

use super::Monitor;
use crate::{
    pb,
    rpc::codec::{BoundedCodec, BoundedDecoder},
};

/// Initial size of a subscriber's send buffer, in bytes.
const INITIAL_BUFFER_BYTES: usize = 512;

/// Buffer size at which bytes go to the transport.
const YIELD_BYTES: usize = 32 * 1024;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// `MonitorService` as a service of the listener.
#[derive(Clone)]
pub struct MonitorServer {
    /// Monitor that handles the calls.
    pub monitor: Monitor,
    /// Upper bound of a request in bytes.
    pub max_message_size: usize,
}

impl NamedService for MonitorServer {
    const NAME: &'static str = "watchpost.v1.MonitorService";
}

impl Service<http::Request<Body>> for MonitorServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut accepted = EnabledCompressionEncodings::default();
        accepted.enable(CompressionEncoding::Gzip);
        let limit = Some(self.max_message_size);
        let monitor = self.monitor.clone();
        match request.uri().path() {
            "/watchpost.v1.MonitorService/Watch" => {
                let mut grpc = Grpc::new(SharedBytesCodec(monitor.sent().clone()))
                    .apply_compression_config(accepted, EnabledCompressionEncodings::default())
                    .apply_max_message_size_config(limit, None);
                Box::pin(async move { Ok(grpc.server_streaming(Watch(monitor), request).await) })
            }
            "/watchpost.v1.MonitorService/GetFeedStatus" => {
                let codec: BoundedCodec<pb::GetFeedStatusResponse, pb::GetFeedStatusRequest> = BoundedCodec::default();
                let mut grpc = Grpc::new(codec)
                    .apply_compression_config(accepted, EnabledCompressionEncodings::default())
                    .apply_max_message_size_config(limit, None);
                Box::pin(async move { Ok(grpc.unary(GetFeedStatus(monitor), request).await) })
            }
            _ => Box::pin(async { Ok(Status::unimplemented("there is no such method").into_http()) }),
        }
    }
}

/// Method `Watch`.
struct Watch(Monitor);

impl ServerStreamingService<pb::WatchRequest> for Watch {
    type Response = EncodedResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<EncodedResponse, Status>> + Send>>;
    type Future = BoxFuture<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<pb::WatchRequest>) -> Self::Future {
        let monitor = self.0.clone();
        Box::pin(async move {
            let stream = monitor.watch(request.into_inner()).await?;
            Ok(Response::new(Box::pin(stream) as Self::ResponseStream))
        })
    }
}

/// Method `GetFeedStatus`.
struct GetFeedStatus(Monitor);

impl UnaryService<pb::GetFeedStatusRequest> for GetFeedStatus {
    type Response = pb::GetFeedStatusResponse;
    type Future = BoxFuture<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, _: Request<pb::GetFeedStatusRequest>) -> Self::Future {
        let monitor = self.0.clone();
        Box::pin(async move { Ok(Response::new(monitor.feed_status().await?)) })
    }
}

/// Encoded `WatchResponse`: bytes shared by all subscribers, followed by bytes for one subscriber.
#[derive(Debug)]
pub(super) struct EncodedResponse {
    pub shared: Bytes,
    pub own: Bytes,
}

/// Codec that decodes requests and passes on encoded responses.
struct SharedBytesCodec(IntCounter);

impl Codec for SharedBytesCodec {
    type Encode = EncodedResponse;
    type Decode = pb::WatchRequest;
    type Encoder = SharedBytesEncoder;
    type Decoder = BoundedDecoder<pb::WatchRequest>;

    fn encoder(&mut self) -> Self::Encoder {
        SharedBytesEncoder(self.0.clone())
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder::new()
    }
}

struct SharedBytesEncoder(IntCounter);

impl Encoder for SharedBytesEncoder {
    type Item = EncodedResponse;
    type Error = Status;

    fn encode(&mut self, message: EncodedResponse, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let EncodedResponse { shared, own } = message;
        buffer.reserve(shared.len() + own.len());
        buffer.put(shared);
        buffer.put(own);
        self.0.inc();
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(INITIAL_BUFFER_BYTES, YIELD_BYTES)
    }
}
