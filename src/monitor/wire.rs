//! The gRPC side of `Watch`: messages go out as the bytes that subscribers share.
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
    codec::{
        BufferSettings, Codec, CompressionEncoding, EnabledCompressionEncodings, EncodeBuf, Encoder,
    },
    server::{Grpc, NamedService, ServerStreamingService, UnaryService},
};
use tower::Service;

use super::Monitor;
use crate::{
    pb,
    rpc::codec::{BoundedCodec, BoundedDecoder},
};

/// How much room for messages an idle subscriber has, in bytes. It grows with what is sent.
const BUFFER: usize = 512;

/// How many bytes go to the transport at a time.
const YIELD_AT: usize = 32 * 1024;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// `MonitorService` as a service of the listener.
#[derive(Clone)]
pub struct MonitorServer {
    /// Does the work.
    pub monitor: Monitor,
    /// The largest request that is accepted, in bytes.
    pub max_message_size: usize,
}

impl NamedService for MonitorServer {
    const NAME: &'static str = "watchpost.v1.MonitorService";
}

impl Service<http::Request<Body>> for MonitorServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<Self::Response, Infallible>>;

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
                let mut grpc = Grpc::new(EncodedCodec(monitor.sent().clone()))
                    .apply_compression_config(accepted, EnabledCompressionEncodings::default())
                    .apply_max_message_size_config(limit, None);
                Box::pin(async move { Ok(grpc.server_streaming(Watch(monitor), request).await) })
            }
            "/watchpost.v1.MonitorService/GetFeedStatus" => {
                let codec: BoundedCodec<pb::GetFeedStatusResponse, pb::GetFeedStatusRequest> =
                    BoundedCodec::default();
                let mut grpc = Grpc::new(codec)
                    .apply_compression_config(accepted, EnabledCompressionEncodings::default())
                    .apply_max_message_size_config(limit, None);
                Box::pin(async move { Ok(grpc.unary(GetFeedStatus(monitor), request).await) })
            }
            _ => {
                Box::pin(async { Ok(Status::unimplemented("there is no such method").into_http()) })
            }
        }
    }
}

/// The method `Watch`.
struct Watch(Monitor);

impl ServerStreamingService<pb::WatchRequest> for Watch {
    type Response = Encoded;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Encoded, Status>> + Send>>;
    type Future = Boxed<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<pb::WatchRequest>) -> Self::Future {
        let monitor = self.0.clone();
        Box::pin(async move {
            let stream = monitor.watch(request.into_inner()).await?;
            Ok(Response::new(Box::pin(stream) as Self::ResponseStream))
        })
    }
}

/// The method `GetFeedStatus`.
struct GetFeedStatus(Monitor);

impl UnaryService<pb::GetFeedStatusRequest> for GetFeedStatus {
    type Response = pb::GetFeedStatusResponse;
    type Future = Boxed<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, _: Request<pb::GetFeedStatusRequest>) -> Self::Future {
        let monitor = self.0.clone();
        Box::pin(async move { Ok(Response::new(monitor.feed_status().await?)) })
    }
}

/// An encoded `WatchResponse`: what all subscribers share of it, then what is this one's own.
#[derive(Debug)]
pub(super) struct Encoded {
    pub shared: Bytes,
    pub own: Bytes,
}

/// Decodes requests as usual; responses are encoded already.
struct EncodedCodec(IntCounter);

impl Codec for EncodedCodec {
    type Encode = Encoded;
    type Decode = pb::WatchRequest;
    type Encoder = EncodedEncoder;
    type Decoder = BoundedDecoder<pb::WatchRequest>;

    fn encoder(&mut self) -> Self::Encoder {
        EncodedEncoder(self.0.clone())
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder::new()
    }
}

struct EncodedEncoder(IntCounter);

impl Encoder for EncodedEncoder {
    type Item = Encoded;
    type Error = Status;

    fn encode(&mut self, message: Encoded, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let Encoded { shared, own } = message;
        buffer.reserve(shared.len() + own.len());
        buffer.put(shared);
        buffer.put(own);
        self.0.inc();
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD_AT)
    }
}
