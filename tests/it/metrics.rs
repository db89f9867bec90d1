//! What tools get by HTTP: metrics and health.
#![expect(clippy::float_cmp, reason = "what is told is what was counted")]

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;
use watchpost::{config::Settings, pb};

use crate::support::{
    self, PATIENCE, TestServer, always, connect,
    database::{Backend, Cluster, TestDatabase, on_both},
    detection, eventually, eventually_ok,
    fake_nvml::{Card, FakeNvml},
    process::command,
    topics,
};

mod exposition;
mod files;
mod gpu;

use exposition::{Exposition, Sample};

/// Sends what is given, and reads until the server closes the connection.
async fn send(address: SocketAddr, request: &str) -> String {
    let asking = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    timeout(PATIENCE, asking).await.expect("an answer in time")
}

/// Asks for a page: its status, its head and its body.
async fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let answer = send(address, &format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_string())
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let (status, _, body) = ask(address, "GET", path).await;
    (status, body)
}

async fn scrape(address: SocketAddr) -> Exposition {
    let (status, body) = get(address, "/metrics").await;
    assert_eq!(status, 200, "{body}");
    Exposition::parse(&body)
}

/// Scrapes until what is told is as it should be.
pub(crate) async fn scrape_until(address: SocketAddr, good: impl Fn(&Exposition) -> bool) -> Exposition {
    eventually_ok("the metrics are as they should be", async || {
        let (_, body) = get(address, "/metrics").await;
        let all = Exposition::parse(&body);
        if good(&all) { Ok(all) } else { Err(body) }
    })
    .await
}

/// With metrics at a free port.
pub(crate) fn measured(settings: &mut Settings) {
    settings.metrics_listen = Some("127.0.0.1:0".into());
}

/// The same, with these GPUs.
fn with_gpus(fake: &FakeNvml) -> impl FnOnce(&mut Settings) {
    let library = fake.library();
    move |settings| {
        measured(settings);
        settings.nvml_library = Some(library);
        settings.gpu_interval = Duration::from_millis(100);
        settings.host = Some("camera \"box\"\\".into());
    }
}

#[tokio::test]
async fn nothing_is_served_by_http_unless_asked_for() {
    let server = TestServer::start(Backend::Sqlite).await;
    assert_eq!(server.metrics_address(), None);
    server.stop().await;
}

#[on_both]
async fn calls_ingests_watches_and_the_feed_are_counted(backend: Backend) {
    let server = TestServer::start_with(TestDatabase::migrated(backend).await, measured).await;
    let address = server.metrics_address().unwrap();
    let before = scrape(address).await;
    assert_eq!(before.value("watchpost_ingest_alerts_total", &[("severity", "high")]), 0.0);
    server.camera("door").await;
    server.rule(pb::AlertRule { severity: pb::Severity::High.into(), ..always("all") }).await;
    let mut watch = server.watch(topics(&[pb::Topic::Alerts])).await;
    for _ in 0..3 {
        server.ingest("door", vec![detection("person", 0.9), detection("cat", 0.5)]).await;
        watch.alert().await;
    }
    let request =
        pb::IngestEventRequest { request_id: uuid::Uuid::now_v7().to_string(), ..support::ingest("door", vec![]) };
    for _ in 0..2 {
        server.events().ingest_event(request.clone()).await.unwrap();
    }
    let refused = server.events().ingest_event(support::ingest("nowhere", vec![])).await.unwrap_err();
    let mut unknown = tonic::client::Grpc::new(server.channel.clone());
    unknown.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/watchpost.v1.EventService/Nope");
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let no_method = unknown.unary(tonic::Request::new(()), path, codec).await.unwrap_err();
    assert_eq!(no_method.code(), Code::Unimplemented);
    watch.alert().await;

    let ingest =
        [("grpc_service", "watchpost.v1.EventService"), ("grpc_method", "IngestEvent"), ("grpc_type", "unary")];
    // A call is counted when its response is sent, which may be after it was read.
    let settled = |all: &Exposition| {
        let count = all.all("grpc_server_handling_seconds_count", &ingest);
        count.first().is_some_and(|count| count.value == 6.0)
    };
    let told = scrape_until(address, settled).await;
    let code = |code| [&ingest[..], &[("grpc_code", code)]].concat();
    assert_eq!(told.value("grpc_server_started_total", &ingest), 6.0);
    assert_eq!(told.value("grpc_server_handled_total", &code("OK")), 5.0);
    let refusal = if refused.code() == Code::NotFound { "NotFound" } else { "FailedPrecondition" };
    assert_eq!(told.value("grpc_server_handled_total", &code(refusal)), 1.0, "{refused:?}");
    let buckets = told.all("grpc_server_handling_seconds_bucket", &ingest);
    assert!(buckets.is_sorted_by(|a, b| a.value <= b.value));
    assert_eq!(buckets.last().map(|last| (last.label("le"), last.value)), Some(("+Inf", 6.0)));
    let nope = [("grpc_service", "unknown"), ("grpc_method", "unknown"), ("grpc_code", "Unimplemented")];
    assert_eq!(told.value("grpc_server_handled_total", &nope), 1.0);
    assert!(!told.samples.iter().any(|sample| sample.label("grpc_method") == "Nope"));

    for (name, value) in [("events", 4.0), ("detections", 6.0), ("replays", 1.0), ("batch_size_sum", 5.0)] {
        let name = format!("watchpost_ingest_{name}{}", if name.contains("size") { "" } else { "_total" });
        assert!(told.value(&name, &[]) >= value, "{name}: {}", told.value(&name, &[]));
    }
    assert_eq!(told.value("watchpost_ingest_events_total", &[]), 4.0);
    assert_eq!(told.value("watchpost_ingest_alerts_total", &[("severity", "high")]), 4.0);
    assert_eq!(told.value("watchpost_ingest_alerts_total", &[("severity", "low")]), 0.0);
    assert_eq!(told.value("watchpost_watches", &[]), 1.0);
    assert!(told.value("watchpost_watch_messages_sent_total", &[]) >= 5.0);
    // A camera, a rule, and four events and alerts.
    scrape_until(address, |all| all.value("watchpost_feed_changes_read_total", &[]) == 10.0).await;
    let told = scrape_until(address, |all| all.value("watchpost_feed_lag_changes", &[]) == 0.0).await;
    assert_eq!(told.value("watchpost_feed_lag_seconds", &[]), 0.0);
    assert!(told.value("watchpost_feed_changes", &[]) >= 10.0);
    assert_eq!(told.value("watchpost_database_up", &[]), 1.0);
    assert_eq!(told.value("watchpost_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    drop(watch);
    let open = [("grpc_method", "Watch"), ("grpc_type", "server_stream"), ("grpc_code", "Canceled")];
    let told = scrape_until(address, |all| !all.all("grpc_server_handled_total", &open).is_empty()).await;
    assert_eq!(told.value("watchpost_watches", &[]), 0.0);
    server.stop().await;
}

#[tokio::test]
async fn pages_and_methods_that_do_not_exist_are_refused() {
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let server = TestServer::start_with(database, measured).await;
    let address = server.metrics_address().unwrap();
    assert_eq!(get(address, "/healthz").await, (200, "ok\n".into()));
    assert_eq!(get(address, "/readyz?verbose").await.0, 200);
    assert_eq!(get(address, "/").await.0, 404);
    assert_eq!(get(address, "/metrics/").await.0, 404);
    let (status, head, _) = ask(address, "POST", "/metrics").await;
    assert_eq!((status, head.contains("allow: get, head")), (405, true));
    let (status, head, body) = ask(address, "HEAD", "/metrics").await;
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    // More than a head may have; and one that never ends.
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000));
    assert!(!send(address, &long).await.starts_with("HTTP/1.1 200"));
    assert!(!send(address, "GET /metrics HTTP/1.1\r\nHost: ").await.contains("200 OK"));
    let database = server.stop().await;
    assert!(TcpStream::connect(address).await.is_err(), "the listener ends with the server");
    drop(database);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_its_database_is_alive_and_not_ready() {
    let cluster = Cluster::start().await;
    let server = support::start(&cluster.url("postgres"), measured).await;
    let address = server.metrics_address.unwrap();
    let channel = connect(&format!("http://{}", server.address)).await;
    assert_eq!(get(address, "/readyz").await, (200, "ok\n".into()));
    cluster.stop().await;
    let ready = async |expected: u16| {
        let what = format!("/readyz answers {expected}");
        eventually(&what, async || get(address, "/readyz").await.0 == expected).await;
    };
    ready(503).await;
    assert!(get(address, "/readyz").await.1.contains("database"));
    let status = support::process::overall(&channel).await.unwrap();
    assert_eq!(status.as_str_name(), "NOT_SERVING");
    assert_eq!(get(address, "/healthz").await.0, 200);
    let told = scrape(address).await;
    assert_eq!(told.value("watchpost_database_up", &[]), 0.0);
    assert!(told.all("watchpost_feed_changes", &[]).is_empty());
    cluster.restart().await;
    ready(200).await;
    drop(channel);
    assert!(server.stop().await);
}

#[tokio::test]
async fn an_address_that_is_taken_ends_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let args = ["--listen", "127.0.0.1:0", "--metrics-listen", &address, "--data-dir", folder];
    let output = timeout(PATIENCE, command(&args).output()).await.unwrap().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("cannot listen on {address}")), "{log}");
}
