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
    ending::Ending,
    limits::{admission::Admission, call_limit::CallLimit, unfinished::Unfinished},
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
    /// Statistics of calls.
    pub calls: Calls,
    /// Limit of concurrent calls.
    pub call_limit: CallLimit,
    /// Bound of requests that have not arrived completely.
    pub unfinished: Unfinished,
    /// Ends the streams of health and reflection, whose services have no shutdown token.
    pub shutdown: CancellationToken,
}

impl RequestLayer {
    /// Acquires a permit for a call of the method at this path.
    fn admit(&self, path: &str) -> Result<OwnedSemaphorePermit> {
        let permit = self.call_limit.take(path)?;
        if !self.ready.load(Ordering::Acquire) && path.starts_with("/watchpost.") {
            return Err(Error::Starting);
        }
        Ok(permit)
    }
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

/// Service created by [`RequestLayer`].
#[derive(Debug, Clone)]
pub struct Requests<S> {
    inner: S,
    layer: RequestLayer,
}

impl<S> Service<Request<Body>> for Requests<S>
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

        let mut call = self.layer.calls.begin(path);
        match self.layer.admit(path) {
            Ok(permit) => call.keep(permit),
            Err(error) => {
                let mut response = Status::from(error).into_http();
                response.headers_mut().insert(REQUEST_ID, id);
                return Box::pin(std::future::ready(Ok(call.answered(response))));
            }
        }

        let two_way = path.starts_with("/grpc.reflection.") || call.takes_stream();
        let waits = !two_way && call.is_known();
        let foreign = !path.starts_with("/watchpost.");
        let shutdown = self.layer.shutdown.clone();
        let limit = self.layer.max_message_size;
        let admitted = self.layer.admission.call(path);
        let unfinished = &self.layer.unfinished;
        let request = request.map(|body| unfinished.bound(body, two_way));
        let deadline = deadline::of(request.headers());
        let mut inner = self.inner.clone();
        let reply = async move {
            // A call takes several times more memory inside its service. A unary call therefore
            // waits outside until its message is complete. A stream may be answered before its
            // first message.
            let (parts, mut body) = request.into_parts();
            if waits {
                body.begin().await;
            }
            let request = Request::from_parts(parts, Body::new(body));
            Box::pin(inner.call(request)).await
        };
        let reply = deadline::keep(deadline, admitted.scope(reply));
        let answered = async move {
            let mut response = match reply.await {
                Some(response) => response?,
                None => Status::from(Error::DeadlineExceeded).into_http(),
            };
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
                // An open stream would block the shutdown.
                let end = async move {
                    shutdown.cancelled().await;
                    Error::ShuttingDown
                };
                response = response.map(|body| Body::new(Ending::new(body, two_way, end)));
            }
            if let Some(deadline) = deadline
                && !response.headers().contains_key(&GRPC_STATUS)
            {
                response = response.map(|body| Body::new(Ending::at(body, two_way, deadline)));
            }
            Ok(call.answered(response))
        };
        Box::pin(answered.instrument(span))
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
        let unknown = "there is no such method on this server";
        return Some(Error::Unimplemented(match status.message() {
            "" => unknown.to_string(),
            message => message.to_string(),
        }));
    }
    not_a_message(&status, limit)
}

/// Returns the next message of a request stream with messages of up to `limit` bytes. Errors of the
/// message get details here, because tonic creates these errors between two messages, outside of
/// the layer.
pub async fn next<T>(requests: &mut Streaming<T>, limit: usize) -> Result<Option<T>, Status> {
    requests.message().await.map_err(|status| {
        if status.details().is_empty() {
            not_a_message(&status, limit).map_or(status, Into::into)
        } else {
            status
        }
    })
}

/// Translates a tonic error about an unreadable message.
fn not_a_message(status: &Status, limit: usize) -> Option<Error> {
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
            unfinished: Unfinished::new(std::time::Duration::from_secs(30), 1, 1),
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
