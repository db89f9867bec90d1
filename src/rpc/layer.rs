//! What surrounds every call: a span with its id, the gate while starting, and the errors of the transport.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::Frame;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument, error_span, field::Empty};
use uuid::Uuid;

use super::{admission::Admission, calls::Calls};
use crate::error::Error;

/// Tells client and server the id of a request; taken from the request if it has one.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// Wraps every service of the listener.
#[derive(Debug, Clone)]
pub struct RequestLayer {
    /// Whether the services can work; until then calls of ours are answered with `STARTING`.
    pub ready: Arc<AtomicBool>,
    /// The largest request that is accepted, in bytes.
    pub max_message_size: usize,
    /// Lets requests in, by the memory that they take.
    pub admission: Admission,
    /// Counts every call.
    pub calls: Calls,
    /// Ends the streams of health and reflection, which know of no shutdown.
    pub shutdown: CancellationToken,
}

impl<S> Layer<S> for RequestLayer {
    type Service = Requests<S>;

    fn layer(&self, inner: S) -> Requests<S> {
        Requests {
            inner,
            layer: self.clone(),
        }
    }
}

/// See [`RequestLayer`].
#[derive(Debug, Clone)]
pub struct Requests<S> {
    inner: S,
    layer: RequestLayer,
}

impl<S, B> Service<Request<B>> for Requests<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let given = request
            .headers()
            .get(&REQUEST_ID)
            .filter(|id| id.len() <= 128 && id.to_str().is_ok());
        let id = given.cloned().unwrap_or_else(new_id);
        let path = request.uri().path();
        let (service, method) = path
            .trim_start_matches('/')
            .split_once('/')
            .unwrap_or((path, ""));
        let span = error_span!(
            "request",
            rpc.service = service,
            rpc.method = method,
            request.id = id.to_str().unwrap_or_default(),
            rpc.grpc.status_code = Empty,
        );

        let call = self.layer.calls.begin(path);
        if !self.layer.ready.load(Ordering::Acquire) && path.starts_with("/watchpost.") {
            let mut response = Status::from(Error::Starting).into_http();
            response.headers_mut().insert(REQUEST_ID, id);
            return Box::pin(std::future::ready(Ok(call.answered(response))));
        }

        let two_way = path.starts_with("/grpc.reflection.");
        let foreign = !path.starts_with("/watchpost.");
        let shutdown = self.layer.shutdown.clone();
        let limit = self.layer.max_message_size;
        let admitted = self.layer.admission.call(path);
        let reply = admitted.scope(self.inner.call(request));
        let answered = async move {
            let mut response = reply.await?;
            if !foreign && let Some(error) = transport_error(&response, limit) {
                response = Status::from(error).into_http();
            }
            if let Some(status) = response
                .headers()
                .get(&GRPC_STATUS)
                .and_then(|status| status.to_str().ok())
            {
                tracing::Span::current().record("rpc.grpc.status_code", status);
                tracing::debug!("answered with an error");
            }
            response.headers_mut().insert(REQUEST_ID, id);
            if foreign {
                response = response.map(|body| {
                    Body::new(Ending {
                        body,
                        two_way,
                        shutdown: Box::pin(shutdown.cancelled_owned()),
                        ended: false,
                    })
                });
            }
            Ok(call.answered(response))
        };
        Box::pin(answered.instrument(span))
    }
}

fn new_id() -> HeaderValue {
    // A UUID is always a legal header value.
    HeaderValue::try_from(Uuid::now_v7().to_string()).unwrap_or(HeaderValue::from_static("-"))
}

/// The errors that tonic makes before a handler is reached. Ours are told apart by their details.
fn transport_error(response: &Response<Body>, limit: usize) -> Option<Error> {
    let headers = response.headers();
    if !headers.contains_key(&GRPC_STATUS) || headers.contains_key(&GRPC_DETAILS) {
        return None;
    }
    let status = Status::from_header_map(headers)?;
    if status.code() == Code::Unimplemented {
        let unknown = "there is no such method on this server";
        return Some(Error::Unimplemented(match status.message() {
            "" => unknown.to_string(),
            message => message.to_string(),
        }));
    }
    not_a_message(&status, limit)
}

/// The same for a stream of requests, where tonic makes them between two of them.
pub fn of_stream(status: Status, limit: usize) -> Status {
    if !status.details().is_empty() {
        return status;
    }
    not_a_message(&status, limit).map_or(status, Into::into)
}

/// What tonic means if it cannot hand over a message.
fn not_a_message(status: &Status, limit: usize) -> Option<Error> {
    if status.code() == Code::OutOfRange && status.message().contains("message length too large") {
        return Some(Error::TooLarge { limit });
    }
    // Of a compressed message, once it is not any more.
    if status.code() == Code::ResourceExhausted && status.message().contains("decompressing") {
        return Some(Error::TooLarge { limit });
    }
    // A frame that is broken or missing, or a message that cannot be decoded.
    (status.code() == Code::Internal).then_some(Error::Malformed)
}

/// A body that ends at shutdown: an open stream would hold the server up.
struct Ending {
    body: Body,
    /// Whether the client may still be sending; such a stream can only be reset.
    two_way: bool,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if self.shutdown.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.ended = true;
        if self.two_way {
            return Poll::Ready(Some(Err(Error::ShuttingDown.into())));
        }
        let mut trailers = HeaderMap::new();
        let status = Status::from(Error::ShuttingDown);
        Poll::Ready(Some(
            status
                .add_header(&mut trailers)
                .map(|()| Frame::trailers(trailers)),
        ))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }
}
