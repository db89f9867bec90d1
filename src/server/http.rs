//! HTTP listener for monitoring tools: `/metrics`, `/healthz` and `/readyz`.
//!
//! The listener uses HTTP/1.1 by hyper, a dependency of tonic. A connection serves one request and
//! is closed after ten seconds, so that slow clients cost little.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    health::Health,
    metrics::{self, Metrics},
};

/// Maximum time for a client to send the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum duration of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum size of a request head, in bytes: the minimum that hyper accepts.
const MAX_HEAD_BYTES: usize = 8192;

/// Maximum number of open connections. Beyond the limit the oldest is closed, whose client has been
/// slow for the longest time.
const MAX_CONNECTIONS: usize = 1024;

/// Maximum number of concurrent answers with metrics.
const MAX_SCRAPES: usize = 64;

/// Pause after a failed accept, as when no file can be opened.
const RETRY: Duration = Duration::from_millis(100);

/// Serves HTTP requests until shutdown.
pub async fn serve(listener: TcpListener, metrics: Metrics, shutdown: CancellationToken) {
    let scrapes = Scrapes::new(metrics);
    let accepting = async {
        let mut open = VecDeque::<AbortHandle>::new();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if open.len() >= MAX_CONNECTIONS {
                        open.retain(|connection| !connection.is_finished());
                    }
                    if open.len() >= MAX_CONNECTIONS
                        && let Some(oldest) = open.pop_front()
                    {
                        oldest.abort();
                    }
                    let answering = serve_connection(stream, scrapes.clone());
                    let shutdown = shutdown.clone();
                    let connection = tokio::spawn(async move {
                        shutdown.run_until_cancelled(answering).await;
                    });
                    open.push_back(connection.abort_handle());
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    sleep(RETRY).await;
                }
            }
        }
    };
    shutdown.run_until_cancelled(accepting).await;
}

/// Text of the metrics, shared by concurrent scrapes. Clones share the state.
#[derive(Clone)]
struct Scrapes {
    metrics: Metrics,
    newest: Arc<Mutex<Option<Scrape>>>,
    permits: Arc<Semaphore>,
}

/// Text of the metrics and the start of its computation.
struct Scrape {
    started_at: Instant,
    text: Bytes,
}

/// Text that is being sent, with its permit.
struct SentText {
    text: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for SentText {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

impl Scrapes {
    fn new(metrics: Metrics) -> Self {
        Self { metrics, newest: Arc::default(), permits: Arc::new(Semaphore::new(MAX_SCRAPES)) }
    }

    /// Returns the metrics of this moment or later. `None` if too many scrapes are running.
    async fn text(&self) -> Option<Bytes> {
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        let requested_at = Instant::now();
        let mut newest = self.newest.lock().await;
        let text = match &*newest {
            Some(scrape) if scrape.started_at >= requested_at => scrape.text.clone(),
            _ => {
                let started_at = Instant::now();
                let text = Bytes::from(self.metrics.text().await);
                *newest = Some(Scrape { started_at, text: text.clone() });
                text
            }
        };
        Some(Bytes::from_owner(SentText { text, _permit: permit }))
    }
}

async fn serve_connection(stream: TcpStream, scrapes: Scrapes) {
    let answer = service_fn(move |request| {
        let scrapes = scrapes.clone();
        async move { Ok::<_, Infallible>(answer(&request, &scrapes).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    match timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP request could not be answered"),
        Err(_) => tracing::debug!("an HTTP client was too slow"),
    }
}

async fn answer(request: &Request<Incoming>, scrapes: &Scrapes) -> Response<Full<Bytes>> {
    let is_known = matches!(request.uri().path(), "/metrics" | "/healthz" | "/readyz");
    if !is_known {
        return text(StatusCode::NOT_FOUND, "not found: use /metrics, /healthz or /readyz\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n");
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    match request.uri().path() {
        "/metrics" => {
            let Some(metrics) = scrapes.text().await else {
                let busy = "too many concurrent scrapes; retry later\n";
                return text(StatusCode::SERVICE_UNAVAILABLE, busy);
            };
            let mut response = text(StatusCode::OK, metrics);
            let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        "/readyz" => ready(&scrapes.metrics.health, request.uri().query() == Some("verbose")),
        _ => text(StatusCode::OK, "ok\n"),
    }
}

fn ready(health: &Health, verbose: bool) -> Response<Full<Bytes>> {
    let (status, mut body) = match (health.serving(), health.feed_blocker()) {
        (Ok(()), None) => (StatusCode::OK, "ok\n".to_string()),
        (Ok(()), Some(blocker)) => (StatusCode::OK, format!("ok, but the change feed is blocked by {blocker}\n")),
        (Err(reason), _) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    };
    if verbose {
        for line in health.details() {
            body.push_str(&line);
            body.push('\n');
        }
    }
    text(status, body)
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
