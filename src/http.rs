//! The HTTP listener for tools: `/metrics`, `/healthz` and `/readyz`.
//!
//! It speaks HTTP/1.1 by hyper, which tonic brings. A connection answers one request and has ten
//! seconds for it, so that a client that is slow to ask or to read costs little and not for long.

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

/// How long a client may take to send the head of its request.
const HEAD_WITHIN: Duration = Duration::from_secs(5);

/// How long a connection may take from its start to its end.
const CONNECTION_WITHIN: Duration = Duration::from_secs(10);

/// How large the head of a request may be, in bytes: the least that hyper takes.
const HEAD_BYTES: usize = 8192;

/// Largest number of open connections. For one more the oldest is closed: a client that has been slow for the longest.
const CONNECTIONS: usize = 1024;

/// Largest number of answers with metrics that are computed or sent at a time.
const SCRAPES: usize = 64;

/// How long to wait after a failure to accept a connection, as when no file can be opened.
const RETRY: Duration = Duration::from_millis(100);

/// Answers HTTP requests until shutdown.
pub async fn serve(listener: TcpListener, metrics: Metrics, shutdown: CancellationToken) {
    let scrapes = Scrapes::new(metrics);
    let accepting = async {
        let mut open = VecDeque::<AbortHandle>::new();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if open.len() >= CONNECTIONS {
                        open.retain(|connection| !connection.is_finished());
                    }
                    if open.len() >= CONNECTIONS
                        && let Some(oldest) = open.pop_front()
                    {
                        oldest.abort();
                    }
                    let answering = answer_one(stream, scrapes.clone());
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

/// The text of the metrics, shared by the scrapes that wait for it. Clones share all.
#[derive(Clone)]
struct Scrapes {
    metrics: Metrics,
    newest: Arc<Mutex<Option<Scrape>>>,
    places: Arc<Semaphore>,
}

/// A text, and when its computation began.
struct Scrape {
    begun_at: Instant,
    text: Bytes,
}

/// A text that is being sent, and its place.
struct Sending {
    text: Bytes,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Sending {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

impl Scrapes {
    fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            newest: Arc::default(),
            places: Arc::new(Semaphore::new(SCRAPES)),
        }
    }

    /// The metrics as they were at this moment or later. `None` while too many scrapes are being answered.
    async fn text(&self) -> Option<Bytes> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        let asked_at = Instant::now();
        let mut newest = self.newest.lock().await;
        let text = match &*newest {
            Some(scrape) if scrape.begun_at >= asked_at => scrape.text.clone(),
            _ => {
                let begun_at = Instant::now();
                let text = Bytes::from(self.metrics.text().await);
                *newest = Some(Scrape {
                    begun_at,
                    text: text.clone(),
                });
                text
            }
        };
        Some(Bytes::from_owner(Sending {
            text,
            _place: place,
        }))
    }
}

async fn answer_one(stream: TcpStream, scrapes: Scrapes) {
    let answer = service_fn(move |request| {
        let scrapes = scrapes.clone();
        async move { Ok::<_, Infallible>(answer(&request, &scrapes).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    match timeout(CONNECTION_WITHIN, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP request could not be answered"),
        Err(_) => tracing::debug!("an HTTP client was too slow"),
    }
}

async fn answer(request: &Request<Incoming>, scrapes: &Scrapes) -> Response<Full<Bytes>> {
    let known = matches!(request.uri().path(), "/metrics" | "/healthz" | "/readyz");
    if !known {
        return text(StatusCode::NOT_FOUND, "there is no such page\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are allowed\n",
        );
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    match request.uri().path() {
        "/metrics" => {
            let Some(metrics) = scrapes.text().await else {
                let busy = "too many scrapes are being answered; try again\n";
                return text(StatusCode::SERVICE_UNAVAILABLE, busy);
            };
            let mut response = text(StatusCode::OK, metrics);
            let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        "/readyz" => ready(
            &scrapes.metrics.health,
            request.uri().query() == Some("verbose"),
        ),
        _ => text(StatusCode::OK, "ok\n"),
    }
}

fn ready(health: &Health, verbose: bool) -> Response<Full<Bytes>> {
    let (status, mut body) = match (health.serving(), health.feed_is_held_by()) {
        (Ok(()), None) => (StatusCode::OK, "ok\n".to_string()),
        (Ok(()), Some(holder)) => (
            StatusCode::OK,
            format!("ok, but the change feed is held back by {holder}\n"),
        ),
        (Err(why), _) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
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
