//! Limits of calls, and of requests that do not arrive whole.
#![expect(clippy::float_cmp, reason = "what is told is what was counted")]

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use prost::Message;
use tokio::{task::JoinSet, time::timeout};
use tonic::{Code, Status, body::Body, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tower::{Service, ServiceExt};
use watchpost::pb::{self, work_jobs_request::Message as WorkerMessage, work_jobs_response::Message as ServerMessage};

use crate::{
    jobs::stream::{Worker, hello},
    metrics::{get, measured, scrape_until},
    support::{
        PATIENCE, TestServer, connect,
        database::{Backend, TestDatabase},
        eventually,
        process::{Process, overall},
        reason, topics,
    },
};

const INGEST: &str = "EventService/IngestEvent";

/// The body of a request that sends these bytes and never ends.
struct Halting(Option<Bytes>);

impl http_body::Body for Halting {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Poll::Pending,
        }
    }
}

/// Begins a call with these bytes, never ends it, and gives the status that comes of it.
async fn halt(mut channel: Channel, method: &'static str, bytes: Bytes) -> Status {
    let bytes = Some(bytes).filter(|bytes| !bytes.is_empty());
    let request = http::Request::post(format!("/watchpost.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Halting(bytes)))
        .unwrap();
    let calling = async {
        let response = channel.ready().await.unwrap().call(request).await.unwrap();
        if let Some(status) = Status::from_header_map(response.headers()) {
            return status;
        }
        let body = response.into_body().collect().await.unwrap();
        Status::from_header_map(body.trailers().unwrap()).unwrap()
    };
    timeout(PATIENCE, calling).await.expect("the call is ended")
}

/// A message that announces so many bytes, of which these are sent.
fn message(announced: usize, sent: &[u8]) -> Bytes {
    let length = u32::try_from(announced).unwrap().to_be_bytes();
    [&[0][..], &length, sent].concat().into()
}

#[track_caller]
fn ended(status: &Status, code: Code, with: &str) {
    assert_eq!((status.code(), reason(status)), (code, with.to_string()));
}

/// A server with metrics and these settings.
async fn server(change: impl FnOnce(&mut watchpost::config::Settings)) -> (TestServer, SocketAddr) {
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let server = TestServer::start_with(database, |settings| {
        measured(settings);
        change(settings);
    });
    let server = server.await;
    let metrics = server.metrics_address().unwrap();
    (server, metrics)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_beyond_the_limit_are_refused_and_health_is_told() {
    let (server, metrics) = server(|settings| settings.max_calls = 2).await;
    let list = || async {
        let request = pb::ListCamerasRequest::default();
        server.cameras().list_cameras(request).await
    };
    let first = server.watch(topics(&[])).await;
    let _second = server.watch(topics(&[])).await;
    let refused = list().await.unwrap_err();
    ended(&refused, Code::ResourceExhausted, "TOO_MANY_CALLS");
    let health = overall(&server.channel).await;
    assert_eq!(health, Some(ServingStatus::Serving));
    let watch = HealthClient::new(server.channel.clone()).watch(HealthCheckRequest::default()).await;
    ended(&watch.unwrap_err(), Code::ResourceExhausted, "TOO_MANY_CALLS");
    let told = scrape_until(metrics, |all| all.value("watchpost_calls", &[]) == 2.0).await;
    assert_eq!(told.value("watchpost_calls_max", &[]), 2.0);
    assert_eq!(told.value("watchpost_calls_refused_total", &[]), 2.0);
    drop(first);
    eventually("a call has ended", async || list().await.is_ok()).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_do_not_arrive_whole_in_time_are_ended() {
    let (server, metrics) = server(|settings| settings.message_timeout = Duration::from_secs(1)).await;
    let mut worker = Worker::start(&server, hello("silent", 1)).await;
    let begin = pb::WorkJobsRequest { message: Some(WorkerMessage::Hello(hello("halting", 1))), ..Default::default() };
    let begin = begin.encode_to_vec();
    let halfway = [message(begin.len(), &begin), message(9, b"1234")].concat();
    let calls = [
        (INGEST, message(1_000, &[0; 500])),
        (INGEST, message(1_000, &[]).slice(..3)),
        (INGEST, Bytes::new()),
        // Whole, and yet not the end of the request.
        ("MonitorService/Watch", message(0, &[])),
        ("JobWorkerService/WorkJobs", halfway.into()),
    ];
    let calls = calls.map(|(method, bytes)| halt(server.channel.clone(), method, bytes));
    for status in futures_util::future::join_all(calls).await {
        ended(&status, Code::DeadlineExceeded, "MESSAGE_TIMEOUT");
    }
    // It has been silent for longer than that, between messages.
    let heartbeat = WorkerMessage::Heartbeat(pb::WorkerHeartbeat {});
    worker.say(1, heartbeat).await;
    assert!(matches!(worker.next().await, ServerMessage::ServerTime(_)));
    let told = scrape_until(metrics, |all| all.value("watchpost_unfinished_requests", &[]) == 0.0);
    let told = told.await;
    assert_eq!(told.value("watchpost_unfinished_timed_out_total", &[]), 5.0);
    assert_eq!(told.value("watchpost_unfinished_bytes", &[]), 0.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_what_is_wrong_with_its_message() {
    let (server, _) = server(|_| ()).await;
    let begin = pb::WorkJobsRequest { message: Some(WorkerMessage::Hello(hello("odd", 1))), ..Default::default() };
    let begin = begin.encode_to_vec();
    let begin = message(begin.len(), &begin);
    let (large, flagged) = (message(5 << 20, &[]), Bytes::from_static(&[7, 0, 0, 0, 0]));
    let report = "GpuStatsService/RecordGpuStats";
    let work = "JobWorkerService/WorkJobs";
    let after_hello = |bytes: &Bytes| Bytes::from([&begin[..], bytes].concat());
    for (method, bytes, code, reason) in [
        (INGEST, large.clone(), Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        (report, large.clone(), Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        (work, large.clone(), Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        (work, after_hello(&large), Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        (report, flagged.clone(), Code::InvalidArgument, "MALFORMED_MESSAGE"),
        (work, flagged.clone(), Code::InvalidArgument, "MALFORMED_MESSAGE"),
        (work, after_hello(&flagged), Code::InvalidArgument, "MALFORMED_MESSAGE"),
        // Two messages.
        (INGEST, message(0, &[0; 5]), Code::InvalidArgument, "MALFORMED_MESSAGE"),
    ] {
        ended(&halt(server.channel.clone(), method, bytes).await, code, reason);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unfinished_request_that_began_first_makes_room() {
    let (server, metrics) = server(|settings| {
        settings.message_timeout = Duration::from_secs(5);
        settings.max_message_size = 1 << 16;
        // The largest message fits all the same.
        settings.unfinished_memory = 0;
    })
    .await;
    let part = || message(60_000, &vec![0; 40_000]);
    let first = tokio::spawn(halt(server.channel.clone(), INGEST, part()));
    scrape_until(metrics, |all| all.value("watchpost_unfinished_bytes", &[]) == 40_005.0).await;
    let second = tokio::spawn(halt(server.channel.clone(), INGEST, part()));
    ended(&first.await.unwrap(), Code::Unavailable, "SERVER_BUSY");
    let told = scrape_until(metrics, |all| all.value("watchpost_unfinished_bytes", &[]) == 40_005.0);
    let told = told.await;
    assert_eq!(told.value("watchpost_unfinished_evicted_total", &[]), 1.0);
    assert_eq!(told.value("watchpost_unfinished_limit_bytes", &[]), 65_541.0);
    // A whole request needs no such room.
    server.camera("door").await;
    let second = second.await.unwrap();
    ended(&second, Code::DeadlineExceeded, "MESSAGE_TIMEOUT");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_say_nothing_give_way_to_newer_ones() {
    let (server, metrics) = server(|_| ()).await;
    let mut calls = JoinSet::new();
    for connection in 0..6 {
        let channel = connect(&format!("http://{}", server.address())).await;
        // Unary calls, streams before their first message, and messages without the end of the request.
        let (method, bytes) = match connection % 3 {
            0 => (INGEST, Bytes::new()),
            1 => ("JobWorkerService/WorkJobs", Bytes::new()),
            _ => ("MonitorService/Watch", message(0, &[])),
        };
        for _ in 0..200 {
            calls.spawn(halt(channel.clone(), method, bytes.clone()));
        }
    }
    // 1,024 of 1,200 may wait.
    for _ in 0..176 {
        let status = calls.join_next().await.unwrap().unwrap();
        ended(&status, Code::Unavailable, "SERVER_BUSY");
    }
    let told = scrape_until(metrics, |all| all.value("watchpost_unfinished_requests", &[]) == 1_024.0);
    let told = told.await;
    assert_eq!(told.value("watchpost_unfinished_evicted_total", &[]), 176.0);
    // Others are served all the same.
    server.camera("door").await;
    calls.shutdown().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_requests_cost_little_memory() {
    const MIB: f64 = 1_048_576.0;

    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let arguments = ["--metrics-listen", "127.0.0.1:0"];
    let mut process = Process::start_with(database.url(), "127.0.0.1:0", &[], &arguments).await;
    let metrics: SocketAddr = process.metrics_address().await.parse().unwrap();
    process.serving().await;
    let memory = "process_resident_memory_bytes";
    let before = scrape_until(metrics, |_| true).await.value(memory, &[]);
    let part = message(4_000_000, &vec![0; 512 << 10]);
    let mut calls = JoinSet::new();
    for _ in 0..3 {
        let channel = connect(&process.address).await;
        for _ in 0..100 {
            calls.spawn(halt(channel.clone(), INGEST, part.clone()));
        }
    }
    // At most 47 of them fit into 24 MiB.
    for _ in 0..253 {
        let status = calls.join_next().await.unwrap().unwrap();
        ended(&status, Code::Unavailable, "SERVER_BUSY");
    }
    let told = scrape_until(metrics, |_| true).await;
    assert!(told.value("watchpost_unfinished_bytes", &[]) <= 24.0 * MIB);
    let cost = told.value(memory, &[]) - before;
    assert!(cost < 100.0 * MIB, "{} MiB", cost / MIB);
    assert_eq!(get(metrics, "/healthz").await.0, 200);
    process.kill().await;
}
