//! Memory of the server, and promptness of its health, beside clients that only hold something: connections without a
//! call, calls without a message, messages without an end.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{
    SendStream,
    client::{self, SendRequest},
};
use http::{Method, Request};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{
    millis,
    server::{Server, resident_mib},
};

const GOAL: &str = "<= 100 MiB above idle, health <= 100 ms";

/// Connections that say nothing, or only greet.
const CONNECTIONS: usize = 9_500;
/// Connections of the calls.
const CALLING: usize = 150;
/// Calls on each of them: the default of `--max-connection-streams`.
const CALLS: usize = 200;
/// Connections of unfinished messages, and messages on each of them.
const SENDING: usize = 3;
const UNFINISHED: usize = 100;
/// Size that an unfinished message announces, in bytes: what the server accepts.
const ANNOUNCED: u32 = 4 * 1024 * 1024;

/// A connection that is kept, with the task that answers its pings.
struct Held {
    requests: SendRequest<Bytes>,
    task: JoinHandle<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What clients hold open. Dropping it closes everything.
#[derive(Default)]
struct Crowd {
    silent: Vec<TcpStream>,
    connections: Vec<Held>,
    calls: Vec<SendStream<Bytes>>,
}

/// Holds each kind on a server of its own, then all kinds at once on another one.
pub async fn run(url: Option<String>) {
    let address = |server: &Server| -> SocketAddr { server.address.trim_start_matches("http://").parse().unwrap() };
    let mut crowd = Crowd::default();
    let (server, metrics, idle) = start(url.clone()).await;
    crowd.stay_silent(address(&server)).await;
    tell(&server, metrics, idle, "crowd_silent_connections").await;
    drop((crowd, server));

    let mut crowd = Crowd::default();
    let (server, metrics, idle) = start(url.clone()).await;
    crowd.greet(address(&server)).await;
    tell(&server, metrics, idle, "crowd_idle_connections").await;
    drop((crowd, server));

    let mut crowd = Crowd::default();
    let (server, metrics, idle) = start(url.clone()).await;
    crowd.call(address(&server)).await;
    tell(&server, metrics, idle, "crowd_calls_without_a_message").await;
    drop((crowd, server));

    let mut crowd = Crowd::default();
    let (server, metrics, idle) = start(url.clone()).await;
    crowd.begin_messages(address(&server)).await;
    tell(&server, metrics, idle, "crowd_unfinished_messages").await;
    drop((crowd, server));

    let mut crowd = Crowd::default();
    let (server, metrics, idle) = start(url).await;
    crowd.call(address(&server)).await;
    crowd.begin_messages(address(&server)).await;
    // Last, since the server closes them after ten seconds.
    crowd.stay_silent(address(&server)).await;
    tell(&server, metrics, idle, "crowd_all").await;
}

/// A server, the address of its metrics, and its memory while nobody uses it, in MiB.
async fn start(url: Option<String>) -> (Server, SocketAddr, f64) {
    // Nobody else is given the port that was free a moment ago.
    let free = StdListener::bind("127.0.0.1:0").unwrap();
    let metrics = free.local_addr().unwrap();
    drop(free);
    let variables = [("WATCHPOST_METRICS_LISTEN", metrics.to_string().into())];
    let server = Server::start_with(url, &variables);
    server.serving().await;
    sleep(Duration::from_secs(3)).await;
    let idle = resident_mib(&server);
    (server, metrics, idle)
}

/// Prints the memory of the server above that of an idle one, and the longest waits for its health.
async fn tell(server: &Server, metrics: SocketAddr, idle: f64, figure: &str) {
    let (check, healthz) = health(server, metrics).await;
    let above = resident_mib(server) - idle;
    server.report(
        figure,
        GOAL,
        &json!({
            "idle_mib": idle, "above_idle_mib": (above * 10.0).round() / 10.0,
            "health_check_max_ms": millis(check), "healthz_max_ms": millis(healthz),
        }),
    );
}

impl Crowd {
    /// Opens connections that say nothing.
    async fn stay_silent(&mut self, address: SocketAddr) {
        for _ in 0..CONNECTIONS {
            self.silent.push(TcpStream::connect(address).await.unwrap());
        }
    }

    /// Opens connections that greet and call nothing.
    async fn greet(&mut self, address: SocketAddr) {
        for _ in 0..CONNECTIONS {
            self.connections.push(connect(address).await);
        }
    }

    /// Begins calls that send no message. The server refuses those beyond `--max-calls`.
    async fn call(&mut self, address: SocketAddr) {
        for _ in 0..CALLING {
            let mut connection = connect(address).await;
            for _ in 0..CALLS {
                self.calls.extend(call(&mut connection.requests).await);
            }
            self.connections.push(connection);
        }
        sleep(Duration::from_secs(1)).await;
    }

    /// Begins messages, and sends as much of each as the server makes room for.
    async fn begin_messages(&mut self, address: SocketAddr) {
        for _ in 0..SENDING {
            let mut connection = connect(address).await;
            for _ in 0..UNFINISHED {
                let Some(mut stream) = call(&mut connection.requests).await else {
                    continue;
                };
                let mut begun = BytesMut::new();
                begun.put_u8(0);
                begun.put_u32(ANNOUNCED);
                begun.resize(ANNOUNCED as usize, 1);
                // A call that was refused takes nothing.
                let _ = stream.send_data(begun.freeze(), false);
                self.calls.push(stream);
            }
            self.connections.push(connection);
        }
        sleep(Duration::from_secs(3)).await;
    }
}

/// Opens a connection and greets.
async fn connect(address: SocketAddr) -> Held {
    let stream = TcpStream::connect(address).await.unwrap();
    let (requests, connection) = client::handshake(stream).await.unwrap();
    let task = tokio::spawn(async move {
        // The server may end it.
        let _ = connection.await;
    });
    Held { requests, task }
}

/// Begins a call without a message. `None`: the connection has no room for another call.
async fn call(requests: &mut SendRequest<Bytes>) -> Option<SendStream<Bytes>> {
    let ready = timeout(Duration::from_secs(1), requests.clone().ready()).await;
    *requests = ready.ok()?.ok()?;
    let request = Request::builder()
        .method(Method::POST)
        .uri("http://watchpost/watchpost.v1.EventService/IngestEvent")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, stream) = requests.send_request(request, false).ok()?;
    // Whoever drops the response resets the stream.
    tokio::spawn(async move {
        let _ = response.await;
        sleep(Duration::from_hours(1)).await;
    });
    Some(stream)
}

/// The longest of fifty health checks on new connections, and of fifty requests for `/healthz`.
async fn health(server: &Server, metrics: SocketAddr) -> (Duration, Duration) {
    let (mut check, mut healthz) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..50 {
        let begun = Instant::now();
        let mut client = HealthClient::new(server.connect().await);
        client.check(HealthCheckRequest::default()).await.unwrap();
        check = check.max(begun.elapsed());
        let begun = Instant::now();
        let mut stream = TcpStream::connect(metrics).await.unwrap();
        let request = b"GET /healthz HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"));
        healthz = healthz.max(begun.elapsed());
    }
    (check, healthz)
}
