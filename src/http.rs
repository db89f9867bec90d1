//! The HTTP listener for tools: `/metrics`, `/healthz` and `/readyz`.
//!
//! It speaks HTTP/1.1 by hyper, which tonic brings. A connection answers one request and has ten
//! seconds for it, so that a client that is slow to ask or to read costs little and not for long.

use std::{convert::Infallible, sync::Arc, time::Duration};

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
    sync::Semaphore,
    time::{sleep, timeout},
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

/// How many connections are served at a time; more wait.
const CONNECTIONS: usize = 64;

/// How long to wait after a failure to accept a connection, as when no file can be opened.
const RETRY: Duration = Duration::from_millis(100);

/// Answers whoever asks, until shutdown.
pub async fn serve(listener: TcpListener, metrics: Metrics, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let accepting = async {
        // The semaphore is never closed.
        while let Ok(place) = places.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let answering = answer_one(stream, metrics.clone());
                    let shutdown = shutdown.clone();
                    tokio::spawn(async move {
                        shutdown.run_until_cancelled(answering).await;
                        drop(place);
                    });
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

async fn answer_one(stream: TcpStream, metrics: Metrics) {
    let answer = service_fn(move |request| {
        let metrics = metrics.clone();
        async move { Ok::<_, Infallible>(answer(&request, &metrics).await) }
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

async fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
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
            let mut response = text(StatusCode::OK, metrics.text().await);
            let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        "/readyz" => ready(&metrics.health, request.uri().query() == Some("verbose")),
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
