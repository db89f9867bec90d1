//! A receiver of webhooks that does what it is told, right or wrong: a real HTTP server on loopback.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::PATIENCE;

/// What the receiver does with a request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Answers with a status, and these headers.
    Status(u16, Vec<(&'static str, String)>),
    /// Never answers.
    Hang,
    /// Breaks the connection off.
    Close,
    /// Answers with a status, and sends a byte now and then for ever.
    Drip(u16),
    /// Answers with a status, and then sends more than anybody wants.
    Huge(u16),
}

/// What has come.
#[derive(Debug, Clone)]
pub struct Received {
    /// Path and query.
    pub target: String,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Received {
    /// A header.
    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    /// The body.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The alert that it is about.
    pub fn alert_id(&self) -> String {
        self.json()["data"]["alert"]["id"].as_str().unwrap().into()
    }
}

/// A server that receives webhooks, until it is dropped.
pub struct Receiver {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

struct Shared {
    answer: Mutex<Answer>,
    received: Mutex<Vec<Received>>,
    more: Notify,
}

impl Receiver {
    /// A receiver that says yes to everything.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            answer: Mutex::new(Answer::Status(204, vec![])),
            received: Mutex::default(),
            more: Notify::new(),
        });
        let serving = tokio::spawn(serve(listener, shared.clone()));
        Self { address, shared, serving }
    }

    /// Where to post.
    pub fn url(&self) -> String {
        format!("http://{}/hook?token=in-the-url", self.address)
    }

    /// What it does from now on.
    pub fn answer(&self, answer: Answer) {
        *self.shared.answer.lock().unwrap() = answer;
    }

    /// Everything that has come so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// Waits until this much has come, and gives it.
    pub async fn wait_for(&self, number: usize) -> Vec<Received> {
        let waiting = async {
            loop {
                let more = self.shared.more.notified();
                let received = self.received();
                if received.len() >= number {
                    return received;
                }
                more.await;
            }
        };
        let waited = timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("{} of {number} came", self.received().len()))
    }

    /// How often each id has come.
    pub fn ids(&self) -> HashMap<String, usize> {
        let mut ids = HashMap::new();
        for received in self.received() {
            *ids.entry(received.header("webhook-id").into()).or_default() += 1;
        }
        ids
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let shared = shared.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| receive(request, shared.clone()));
            // Whoever hangs up early is no concern of ours.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn receive(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, std::io::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?;
    shared.received.lock().unwrap().push(Received {
        target: parts.uri.to_string(),
        headers: parts.headers,
        body: body.to_bytes(),
    });
    shared.more.notify_waiters();
    let answer = shared.answer.lock().unwrap().clone();
    let empty = || http_body_util::Empty::new().boxed();
    let (status, body, headers) = match answer {
        Answer::Status(status, headers) => (status, empty(), headers),
        Answer::Hang => {
            std::future::pending::<()>().await;
            unreachable!()
        }
        Answer::Close => return Err(std::io::Error::other("closed")),
        Answer::Drip(status) => (status, endless(1, Duration::from_millis(50)), vec![]),
        Answer::Huge(status) => (status, endless(65_536, Duration::ZERO), vec![]),
    };
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    Ok(response.body(body).unwrap())
}

fn endless(bytes: usize, every: Duration) -> Body {
    let chunks = futures_util::stream::unfold((), move |()| async move {
        sleep(every).await;
        let chunk = Frame::data(Bytes::from(vec![b'x'; bytes]));
        Some((Ok::<_, Infallible>(chunk), ()))
    });
    StreamBody::new(chunks).boxed()
}
