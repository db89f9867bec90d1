//! Memory of the server, and promptness of its health, beside clients that only hold something: connections without a
//! call, calls without a message, messages without an end.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{
    Reason, SendStream,
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
/// Messages that have begun.
const UNFINISHED: usize = 300;
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

/// Opens everything, and tells after each kind what the server takes.
pub async fn run(url: Option<String>) {
    // Nobody else is given the port that was free a moment ago.
    let free = StdListener::bind("127.0.0.1:0").unwrap();
    let metrics = free.local_addr().unwrap();
    drop(free);
    let variables = [("WATCHPOST_METRICS_LISTEN", metrics.to_string().into())];
    let server = Server::start_with(url, &variables);
    server.serving().await;
    let address: SocketAddr = server
        .address
        .trim_start_matches("http://")
        .parse()
        .unwrap();
    sleep(Duration::from_secs(3)).await;
    let idle = resident_mib(&server);
    let tell = async |figure: &str, held: usize, refused: usize| {
        let (check, healthz) = health(&server, metrics).await;
        let resident = resident_mib(&server);
        server.report(
            figure,
            GOAL,
            &json!({
                "held": held, "refused": refused, "idle_mib": idle, "above_idle_mib": ((resident - idle) * 10.0).round() / 10.0,
                "health_check_max_ms": millis(check), "healthz_max_ms": millis(healthz),
            }),
        );
    };

    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    tell("crowd_silent_connections", silent.len(), 0).await;
    drop(silent);
    // The server has noticed.
    sleep(Duration::from_secs(2)).await;

    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.extend(connect(address).await);
    }
    tell(
        "crowd_idle_connections",
        connections.len(),
        CONNECTIONS - connections.len(),
    )
    .await;

    let (mut calls, mut refused, mut calling) = (Vec::new(), 0, Vec::new());
    for _ in 0..CALLING {
        let Some(mut connection) = connect(address).await else {
            refused += CALLS;
            continue;
        };
        for _ in 0..CALLS {
            match call(&mut connection.requests).await {
                Some(stream) => calls.push(stream),
                None => refused += 1,
            }
        }
        calling.push(connection);
    }
    sleep(Duration::from_secs(1)).await;
    tell("crowd_calls_without_a_message", calls.len(), refused).await;
    drop((calls, calling));
    sleep(Duration::from_secs(2)).await;

    let (mut unfinished, mut refused, mut sending) = (Vec::new(), 0, Vec::new());
    for number in 0..UNFINISHED {
        if number % CALLS == 0 {
            sending.extend(connect(address).await);
        }
        let connection: &mut Held = sending.last_mut().unwrap();
        let Some(mut stream) = call(&mut connection.requests).await else {
            refused += 1;
            continue;
        };
        let mut begun = BytesMut::new();
        begun.put_u8(0);
        begun.put_u32(ANNOUNCED);
        begun.resize(ANNOUNCED as usize, 1);
        // As much goes out as the server makes room for.
        if stream.send_data(begun.freeze(), false).is_err() {
            refused += 1;
        }
        unfinished.push(stream);
    }
    sleep(Duration::from_secs(3)).await;
    tell("crowd_unfinished_messages", unfinished.len(), refused).await;
}

/// Opens a connection and greets. `None`: the server refused it.
async fn connect(address: SocketAddr) -> Option<Held> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (requests, connection) = client::handshake(stream).await.ok()?;
    let task = tokio::spawn(async move {
        // The server may end it.
        let _ = connection.await;
    });
    Some(Held { requests, task })
}

/// Begins a call without a message. `None`: the server keeps it waiting or refused it.
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
    let (response, mut stream) = requests.send_request(request, false).ok()?;
    // Whoever drops the response resets the stream.
    tokio::spawn(async move {
        let _ = response.await;
        sleep(Duration::from_hours(1)).await;
    });
    let reset = std::future::poll_fn(|context| stream.poll_reset(context));
    let refused = timeout(Duration::from_micros(100), reset).await;
    if matches!(refused, Ok(Ok(Reason::REFUSED_STREAM))) {
        return None;
    }
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
