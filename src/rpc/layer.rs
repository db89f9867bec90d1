//! Layer around every call: tracing span with the request id, admission, deadline, and errors of
//! the transport.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use http::{HeaderName, HeaderValue, Request, Response};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument, error_span, field::Empty};
use uuid::Uuid;

use super::{
    calls::Calls,
    early_end::EarlyEndBody,
    limits::{admission::Admission, call_limit::CallLimit, unfinished::UnfinishedRequests},
};
use crate::{
    deadline,
    error::{Error, Result},
};

/// Header with the request id; taken from the request if present.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// Layer of every service of the listener.
#[derive(Debug, Clone)]
pub struct RequestLayer {
    /// True once the services are ready; until then Watchpost calls fail with `STARTING`.
    pub ready: Arc<AtomicBool>,
    /// Maximum request size, in bytes.
    pub max_message_size: usize,
    /// Bound of the memory of decoded requests.
    pub admission: Admission,
    /// Statistics of calls, updated by the layer.
    pub calls: Calls,
    /// Limit of concurrent calls.
    pub call_limit: CallLimit,
    /// Bound of requests that have not arrived completely.
    pub unfinished: UnfinishedRequests,
    /// Ends the streams of health and reflection, whose services have no shutdown token.
    pub shutdown: CancellationToken,
}

impl RequestLayer {
    /// Acquires a permit for a call of the method at this path.
    fn admit(&self, path: &str) -> Result<OwnedSemaphorePermit> {
        let permit = self.call_limit.acquire(path)?;
        if !self.ready.load(Ordering::Acquire) && path.starts_with("/watchpost.") {
            return Err(Error::Starting);
        }
        Ok(permit)
    }
}

impl<S> Layer<S> for RequestLayer {
    type Service = RequestService<S>;

    fn layer(&self, inner: S) -> RequestService<S> {
        RequestService { inner, layer: self.clone() }
    }
}

/// Service created by [`RequestLayer`].
#[derive(Debug, Clone)]
pub struct RequestService<S> {
    inner: S,
    layer: RequestLayer,
}

impl<S> Service<Request<Body>> for RequestService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client_id = request.headers().get(&REQUEST_ID).filter(|id| id.len() <= 128 && id.to_str().is_ok());
        let id = client_id.cloned().unwrap_or_else(new_id);
        let path = request.uri().path();
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
        let span = error_span!(
            "request",
            rpc.service = service,
            rpc.method = method,
            request.id = id.to_str().unwrap_or_default(),
            rpc.grpc.status_code = Empty,
        );

        let mut call = self.layer.calls.begin(path);
        match self.layer.admit(path) {
            Ok(permit) => call.hold_permit(permit),
            Err(error) => {
                let mut response = Status::from(error).into_http();
                response.headers_mut().insert(REQUEST_ID, id);
                return Box::pin(std::future::ready(Ok(call.track_response(response))));
            }
        }

        let is_client_streaming = path.starts_with("/grpc.reflection.") || call.is_client_streaming();
        let waits_for_message = !is_client_streaming && call.is_known();
        let is_foreign = !path.starts_with("/watchpost.");
        let shutdown = self.layer.shutdown.clone();
        let limit = self.layer.max_message_size;
        let memory = self.layer.admission.begin_call(path);
        let unfinished = &self.layer.unfinished;
        let request = request.map(|body| unfinished.bound(body, is_client_streaming));
        let deadline = deadline::from_headers(request.headers());
        let mut inner = self.inner.clone();
        let reply = async move {
            // A call takes several times more memory inside its service. A unary call therefore
            // waits outside until its message is complete. A stream may be answered before its
            // first message.
            let (parts, mut body) = request.into_parts();
            if waits_for_message {
                body.wait_readable().await;
            }
            let request = Request::from_parts(parts, Body::new(body));
            Box::pin(inner.call(request)).await
        };
        let reply = deadline::run(deadline, memory.scope(reply));
        let response_future = async move {
            let mut response = match reply.await {
                Some(response) => response?,
                None => Status::from(Error::DeadlineExceeded).into_http(),
            };
            if !is_foreign && let Some(error) = transport_error(&response, limit) {
                response = Status::from(error).into_http();
            }
            if let Some(status) = response.headers().get(&GRPC_STATUS).and_then(|status| status.to_str().ok()) {
                tracing::Span::current().record("rpc.grpc.status_code", status);
                tracing::debug!("answered with an error");
            }
            response.headers_mut().insert(REQUEST_ID, id);
            if is_foreign {
                // An open stream would block the shutdown.
                let end = async move {
                    shutdown.cancelled().await;
                    Error::ShuttingDown
                };
                response = response.map(|body| Body::new(EarlyEndBody::new(body, is_client_streaming, end)));
            }
            if let Some(deadline) = deadline
                && !response.headers().contains_key(&GRPC_STATUS)
            {
                response =
                    response.map(|body| Body::new(EarlyEndBody::at_deadline(body, is_client_streaming, deadline)));
            }
            Ok(call.track_response(response))
        };
        Box::pin(response_future.instrument(span))
    }
}

fn new_id() -> HeaderValue {
    // A UUID is always a valid header value.
    HeaderValue::try_from(Uuid::now_v7().to_string()).unwrap_or(HeaderValue::from_static("-"))
}

/// Translates errors that tonic creates before a handler runs. Watchpost errors are recognized by
/// their details.
fn transport_error(response: &Response<Body>, limit: usize) -> Option<Error> {
    let headers = response.headers();
    if !headers.contains_key(&GRPC_STATUS) || headers.contains_key(&GRPC_DETAILS) {
        return None;
    }
    let status = Status::from_header_map(headers)?;
    if status.code() == Code::Unimplemented {
        let unknown = "the method is unknown to this server";
        return Some(Error::Unimplemented(match status.message() {
            "" => unknown.to_string(),
            message => message.to_string(),
        }));
    }
    message_error(&status, limit)
}

/// Returns the next message of a request stream with messages of up to `limit` bytes. Errors of the
/// message get details here, because tonic creates these errors between two messages, outside of
/// the layer.
pub async fn next_message<T>(requests: &mut Streaming<T>, limit: usize) -> Result<Option<T>, Status> {
    requests.message().await.map_err(|status| {
        if status.details().is_empty() { message_error(&status, limit).map_or(status, Into::into) } else { status }
    })
}

/// Translates a tonic error about an unreadable message.
fn message_error(status: &Status, limit: usize) -> Option<Error> {
    if status.code() == Code::OutOfRange && status.message().contains("message length too large") {
        return Some(Error::TooLarge { limit });
    }
    // A compressed message that is too large after decompression.
    if status.code() == Code::ResourceExhausted && status.message().contains("decompressing") {
        return Some(Error::TooLarge { limit });
    }
    // A broken or missing frame, or an undecodable message.
    (status.code() == Code::Internal).then_some(Error::Malformed)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::BodyExt;

    use super::*;

    /// Service that never answers, or answers with an endless body.
    #[derive(Clone)]
    struct Silent {
        answers: bool,
    }

    impl Service<Request<Body>> for Silent {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            if !self.answers {
                return Box::pin(std::future::pending());
            }
            let frames = tokio_stream::pending::<Result<http_body::Frame<bytes::Bytes>, Status>>();
            let body = Body::new(http_body_util::StreamBody::new(frames));
            Box::pin(std::future::ready(Ok(Response::new(body))))
        }
    }

    /// Calls a service with a deadline in the past.
    async fn call_late(service: Silent) -> Response<Body> {
        let layer = RequestLayer {
            ready: Arc::new(AtomicBool::new(true)),
            max_message_size: 1,
            admission: Admission::new(&[], 1, 1),
            calls: Calls::new(&[]),
            call_limit: CallLimit::new(1),
            unfinished: UnfinishedRequests::new(std::time::Duration::from_secs(30), 1, 1),
            shutdown: CancellationToken::new(),
        };
        let request = Request::builder()
            .uri("/watchpost.v1.EventService/ListEvents")
            .header("grpc-timeout", "0n")
            .body(Body::empty())
            .unwrap();
        layer.layer(service).call(request).await.unwrap()
    }

    #[tokio::test]
    async fn a_call_ends_at_its_deadline() {
        let response = call_late(Silent { answers: false }).await;
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_stream_ends_at_its_deadline() {
        let response = call_late(Silent { answers: true }).await;
        assert!(!response.headers().contains_key(&GRPC_STATUS));
        let body = response.into_body().collect().await.unwrap();
        let status = Status::from_header_map(body.trailers().unwrap()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }
}
