//! Measures the real binary on loopback, and prints one JSON line per figure.
//!
//! `cargo bench` on SQLite, `cargo bench -- --postgres` on a private PostgreSQL,
//! `cargo bench -- --database-url URL` on an empty database of yours;
//! `--seconds N` sets how long each load lasts, and a name runs one figure only.
//! `delivery_kills --cycles N --seed N` kills the server N times while it delivers.
//! `guarantees --cycles N --seed N` is no load: it checks what watches are promised while
//! servers are killed N times. `schedules --zones N` is none either: it compares when schedules
//! are in force with an oracle, minute by minute over 68 years, for N time zones or all.
//! `storm --postgres --events N` checks cooldowns while N events of one key come to two servers at once.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "../../tests/checker/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod checker;
#[path = "../../tests/it/support/database/cluster.rs"]
#[allow(dead_code, unreachable_pub)]
mod cluster;

#[allow(unreachable_pub)]
mod aggregate;
#[allow(unreachable_pub)]
mod deliveries;
#[allow(unreachable_pub)]
mod guarantees;
#[allow(unreachable_pub)]
mod rules;
#[allow(unreachable_pub)]
mod sampler;
#[allow(unreachable_pub)]
mod schedules;
#[allow(unreachable_pub)]
mod server;
#[allow(unreachable_pub)]
mod storm;
#[allow(unreachable_pub)]
mod streams;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use cluster::Cluster;
use serde_json::json;
use server::{Server, resident_mib, spawn, stop};
use tokio::time::sleep;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use watchpost::pb::{
    self, alert_rule_service_client::AlertRuleServiceClient,
    alert_service_client::AlertServiceClient, camera_service_client::CameraServiceClient,
    event_service_client::EventServiceClient, monitor_service_client::MonitorServiceClient,
    watch_response::Update,
};

const RULES: usize = 100;
const DETECTIONS: usize = 5;
const INGESTS_IN_FLIGHT: usize = 16;
const GETS_IN_FLIGHT: usize = 64;
const CONNECTIONS: usize = 4;
const STARTS: usize = 10;
const ALERTS: usize = 500;

struct Options {
    database_url: Option<String>,
    postgres: bool,
    seconds: u64,
    cycles: u32,
    seed: u64,
    zones: usize,
    events: usize,
    only: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = options();
    let cluster = if options.postgres {
        Some(Cluster::start().await)
    } else {
        None
    };
    let passed = match options.only.as_deref() {
        Some("guarantees") => {
            Some(guarantees::check(cluster.as_ref(), options.cycles, options.seed).await)
        }
        Some("schedules") => Some(schedules::check(options.zones)),
        Some("delivery_kills") => {
            let url = cluster.as_ref().map(|cluster| cluster.url("postgres"));
            Some(deliveries::kills(url, options.cycles, options.seed).await)
        }
        Some("storm") => {
            let cluster = cluster.as_ref().expect("--postgres");
            Some(storm::check(cluster, options.events).await)
        }
        _ => None,
    };
    if let Some(passed) = passed {
        return if passed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    if options.only.as_deref().is_none_or(|only| only == "sampler") {
        sampler::run(options.seconds).await;
        if options.only.is_some() {
            return ExitCode::SUCCESS;
        }
    }
    if options
        .only
        .as_deref()
        .is_none_or(|only| only == "evaluate")
    {
        rules::evaluate(options.seconds);
        if options.only.is_some() {
            return ExitCode::SUCCESS;
        }
    }
    if options.only.as_deref().is_none_or(|only| only == "rules") {
        rules::ingest(cluster.as_ref(), &options).await;
        if options.only.is_some() {
            return ExitCode::SUCCESS;
        }
    }
    if let Some(name @ ("delivery_latency" | "deliveries")) = options.only.as_deref() {
        let url = cluster.as_ref().map(|cluster| cluster.url("postgres"));
        if name == "deliveries" {
            deliveries::rate(url).await;
        } else {
            deliveries::latency(url).await;
        }
        return ExitCode::SUCCESS;
    }
    let url = cluster
        .as_ref()
        .map(|cluster| cluster.url("postgres"))
        .or(options.database_url.clone());
    let mut server = Server::start(url);
    server.serving().await;
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    if wanted("start") {
        start(&mut server).await;
    }
    if wanted("idle_memory") {
        idle_memory(&server).await;
    }
    prepare(&server).await;
    if wanted("alert_latency") {
        alert_latency(&server).await;
    }
    if wanted("ingest") {
        ingest(&server, options.seconds).await;
    }
    if wanted("health_check") {
        health_check(&server, options.seconds).await;
    }
    if wanted("get_alert") {
        get_alert(&server, options.seconds).await;
    }
    if wanted("aggregate") {
        aggregate::aggregate(&server).await;
    }
    streams(&server, &options, wanted).await;
    ExitCode::SUCCESS
}

/// The figures of streams.
async fn streams(server: &Server, options: &Options, wanted: impl Fn(&str) -> bool) {
    streams::prepare(server).await;
    let seconds = options.seconds;
    if wanted("fan_out") {
        let goal = "p50 <= 5 ms, p99 <= 15 ms, all delivered";
        streams::fan_out(server, "fan_out", goal, 1_000, 100.0, seconds).await;
    }
    if wanted("flat_out") {
        let goal = ">= 1000000 messages/s";
        streams::fan_out(server, "flat_out", goal, 1_000, 1e9, seconds).await;
    }
    if wanted("many") {
        let goal = "p99 <= 150 ms, <= 12 KiB for each idle subscriber";
        streams::fan_out(server, "many", goal, 10_000, 1.0, seconds).await;
    }
    if wanted("slow_reader") {
        streams::slow_reader(server, seconds).await;
    }
    if wanted("catch_up") {
        streams::catch_up(server, 300_000).await;
    }
}

fn options() -> Options {
    let mut options = Options {
        database_url: None,
        postgres: false,
        seconds: 10,
        cycles: 10,
        seed: 1,
        zones: usize::MAX,
        events: 100_000,
        only: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // Cargo says so by itself.
            "--bench" => {}
            "--postgres" => options.postgres = true,
            "--database-url" => options.database_url = args.next(),
            "--cycles" => options.cycles = args.next().unwrap().parse().unwrap(),
            "--seed" => options.seed = args.next().unwrap().parse().unwrap(),
            "--zones" => options.zones = args.next().unwrap().parse().unwrap(),
            "--events" => options.events = args.next().unwrap().parse().unwrap(),
            "--seconds" => options.seconds = args.next().unwrap().parse().unwrap(),
            name => options.only = Some(name.to_string()),
        }
    }
    options
}

/// From the start of the process to SERVING, on a database that is there.
async fn start(server: &mut Server) {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        stop(&mut server.child);
        let begun = Instant::now();
        (server.child, server.address) = spawn(&server.folder, server.url.as_ref());
        server.serving().await;
        times.push(begun.elapsed());
    }
    times.sort();
    let ms = |at: usize| millis(times[at]);
    server.report(
        "start_to_serving",
        "<= 150 ms",
        &json!({ "p50_ms": ms(STARTS / 2), "max_ms": ms(STARTS - 1) }),
    );
}

/// The resident memory of a server that nobody talks to.
async fn idle_memory(server: &Server) {
    sleep(Duration::from_secs(3)).await;
    let rss = resident_mib(server);
    server.report("idle_memory", "<= 25 MiB", &json!({ "resident_mib": rss }));
}

/// A camera, and a hundred enabled rules of which one fires.
async fn prepare(server: &Server) {
    let channel = server.connect().await;
    create_camera(&mut CameraServiceClient::new(channel.clone())).await;
    let mut rules = AlertRuleServiceClient::new(channel);
    for number in 0..RULES {
        let fires = number == 0;
        let rule = pb::AlertRule {
            name: format!("rule {number}"),
            object_types: vec![if fires { "person" } else { "aeroplane" }.into()],
            min_confidence: Some(0.5),
            risk_threshold: Some(if fires { 50 } else { 40 }),
            cooldown_seconds: Some(0),
            ..Default::default()
        };
        rules
            .create_alert_rule(pb::CreateAlertRuleRequest {
                alert_rule: Some(rule),
            })
            .await
            .unwrap();
    }
}

async fn create_camera(cameras: &mut CameraServiceClient<Channel>) {
    let camera = pb::Camera {
        id: "bench".into(),
        name: "bench".into(),
        ..Default::default()
    };
    let request = pb::CreateCameraRequest {
        camera: Some(camera),
    };
    cameras.create_camera(request).await.unwrap();
}

fn request() -> pb::IngestEventRequest {
    let detection = |number: usize| pb::Detection {
        file_path: format!("/cameras/bench/{number}.jpg"),
        object_type: Some(["car", "dog", "person", "cat", "bicycle"][number % 5].into()),
        confidence: Some(0.9),
        bbox_x: Some(10),
        bbox_y: Some(20),
        bbox_width: Some(100),
        bbox_height: Some(200),
        video_width: Some(1920),
        video_height: Some(1080),
        ..Default::default()
    };
    let event = pb::Event {
        camera_id: "bench".into(),
        risk_score: Some(70),
        summary: Some("A person walks up to the door and looks around.".into()),
        ..Default::default()
    };
    pb::IngestEventRequest {
        event: Some(event),
        detections: (0..DETECTIONS).map(detection).collect(),
        request_id: uuid::Uuid::now_v7().to_string(),
        ..Default::default()
    }
}

/// Events a second from clients that each wait for their answer.
async fn ingest(server: &Server, seconds: u64) {
    let call = |channel: Channel, _| async move {
        let mut events = EventServiceClient::new(channel);
        let response = events.ingest_event(request()).await.unwrap().into_inner();
        assert_eq!(response.alerts.len(), 1);
    };
    let mut values = closed_loop(server, INGESTS_IN_FLIGHT, seconds, call).await;
    values["resident_mib"] = resident_mib(server).into();
    server.report("ingest", ">= 2500 events/s", &values);
}

/// How long after an alert was raised, which is before its commit, a subscriber has it, on an idle system.
async fn alert_latency(server: &Server) {
    let channel = server.connect().await;
    let watch = pb::WatchRequest {
        topics: vec![pb::Topic::Alerts.into()],
        ..Default::default()
    };
    let mut responses = MonitorServiceClient::new(channel)
        .watch(watch)
        .await
        .unwrap()
        .into_inner();
    responses.message().await.unwrap();
    let events = EventServiceClient::new(server.connect().await);
    let mut times = Vec::new();
    while times.len() < ALERTS {
        let ingest = tokio::spawn({
            let mut events = events.clone();
            async move { events.ingest_event(request()).await.unwrap() }
        });
        loop {
            let response = responses.message().await.unwrap().unwrap();
            if let Some(Update::Alert(change)) = response.update {
                let raised =
                    SystemTime::try_from(change.alert.unwrap().created_at.unwrap()).unwrap();
                times.push(SystemTime::now().duration_since(raised).unwrap());
                break;
            }
        }
        ingest.await.unwrap();
        sleep(Duration::from_millis(10)).await;
    }
    server.report(
        "raised_to_received",
        "p50 <= 5 ms, p99 <= 20 ms",
        &latencies(times),
    );
}

/// Unary calls a second that ask no database: what the transport and this machine allow.
async fn health_check(server: &Server, seconds: u64) {
    let call = |channel: Channel, _| {
        let mut health = HealthClient::new(channel);
        async move { drop(health.check(HealthCheckRequest::default()).await.unwrap()) }
    };
    let values = closed_loop(server, GETS_IN_FLIGHT, seconds, call).await;
    server.report("health_check", "none: the floor", &values);
}

/// Unary calls a second for one of a thousand alerts.
async fn get_alert(server: &Server, seconds: u64) {
    let channel = server.connect().await;
    let mut events = EventServiceClient::new(channel.clone());
    for _ in 0..ALERTS {
        events.ingest_event(request()).await.unwrap();
    }
    let request = pb::ListAlertsRequest {
        page_size: 1000,
        ..Default::default()
    };
    let alerts = AlertServiceClient::new(channel)
        .list_alerts(request)
        .await
        .unwrap();
    let ids: Vec<_> = alerts
        .into_inner()
        .alerts
        .into_iter()
        .map(|alert| alert.id)
        .collect();
    let ids = Arc::new(ids);
    let call = move |channel: Channel, at: usize| {
        let mut alerts = AlertServiceClient::new(channel);
        let id = ids[at % ids.len()].clone();
        async move { drop(alerts.get_alert(pb::GetAlertRequest { id }).await.unwrap()) }
    };
    let values = closed_loop(server, GETS_IN_FLIGHT, seconds, call).await;
    server.report("get_alert", ">= 40000 calls/s on SQLite", &values);
}

/// Calls a second of so many callers on 4 connections, each of which waits for its answer.
async fn closed_loop<F>(
    server: &Server,
    in_flight: usize,
    seconds: u64,
    call: impl Fn(Channel, usize) -> F + Clone + Send + 'static,
) -> serde_json::Value
where
    F: Future<Output = ()> + Send,
{
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut clients = Vec::new();
    for connection in 0..CONNECTIONS {
        let channel = server.connect().await;
        for caller in 0..in_flight / CONNECTIONS {
            let (stop, done, call) = (stop.clone(), done.clone(), call.clone());
            let channel = channel.clone();
            clients.push(tokio::spawn(async move {
                let mut times = Vec::new();
                let mut at = connection * 251 + caller * 17;
                while !stop.load(Ordering::Relaxed) {
                    at += 1;
                    let begun = Instant::now();
                    call(channel.clone(), at).await;
                    times.push(begun.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                times
            }));
        }
    }
    sleep(Duration::from_secs(2)).await;
    let (before, begun) = (done.load(Ordering::Relaxed), Instant::now());
    sleep(Duration::from_secs(seconds)).await;
    let rate = per_second(done.load(Ordering::Relaxed) - before, begun.elapsed());
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.unwrap());
    }
    let mut values = latencies(times);
    values["per_second"] = rate.into();
    values
}

#[allow(clippy::cast_precision_loss)]
fn per_second(count: usize, time: Duration) -> f64 {
    (count as f64 / time.as_secs_f64()).round()
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 100_000.0).round() / 100.0
}

fn latencies(mut times: Vec<Duration>) -> serde_json::Value {
    times.sort();
    let at = |percent: usize| millis(times[(times.len() - 1) * percent / 100]);
    json!({ "p50_ms": at(50), "p99_ms": at(99), "max_ms": at(100), "samples": times.len() })
}
