//! Measures the real binary on loopback, and prints one JSON line per figure.
//!
//! `cargo bench` on SQLite, `cargo bench -- --postgres` on a private PostgreSQL,
//! `cargo bench -- --database-url URL` on an empty database of yours;
//! `--seconds N` sets how long each load lasts, and a name runs one figure only.
//! `jobs` measures the job queue, or one of its figures by name, and `job_kills --cycles N --seed N` kills servers and workers N times while they work jobs.
//! `delivery_kills --cycles N --seed N` kills the server N times while it delivers.
//! `storage_faults --cycles N --seed N` has the disk fail N times while clients write, and kills the server meanwhile.
//! `hostile` sends single requests that are as large as they may be, and measures memory and how long others wait.
//! `crowd` holds thousands of connections, calls and unfinished messages open, and measures memory and health beside them.
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
#[path = "../../tests/job_crash/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod job_crash;

#[path = "../../tests/preloaded/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod preloaded;

#[path = "../../tests/storage_faults/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod storage_faults;

#[allow(unreachable_pub)]
mod aggregate;
#[allow(unreachable_pub)]
mod bare_jobs;
#[allow(unreachable_pub)]
mod crowd;
#[allow(unreachable_pub)]
mod deliveries;
#[allow(unreachable_pub)]
mod guarantees;
#[allow(unreachable_pub)]
mod hostile;
#[allow(unreachable_pub)]
mod job_kills;
#[allow(unreachable_pub)]
mod job_rescue;
#[allow(unreachable_pub)]
mod jobs;
#[allow(unreachable_pub)]
mod rules;
#[allow(unreachable_pub)]
mod sampler;
#[allow(unreachable_pub)]
mod schedules;
#[allow(unreachable_pub)]
mod server;
#[allow(unreachable_pub)]
#[path = "storage_faults.rs"]
mod storage_failing;
#[allow(unreachable_pub)]
mod storm;
#[allow(unreachable_pub)]
mod streams;
#[allow(unreachable_pub)]
mod unary;

use std::{process::ExitCode, time::Duration};

use cluster::Cluster;
use serde_json::json;
use server::Server;
use tonic::transport::Channel;
use watchpost::pb::{
    self, alert_rule_service_client::AlertRuleServiceClient, camera_service_client::CameraServiceClient,
};

const RULES: usize = 100;
const DETECTIONS: usize = 5;

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
    let cluster = if options.postgres { Some(Cluster::start().await) } else { None };
    let own = cluster.as_ref().map(|cluster| cluster.url("postgres"));
    if let Some(name) = options.only.as_deref()
        && let Some(passed) = Box::pin(by_name_only(name, &options, cluster.as_ref(), own.clone())).await
    {
        return if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    if wanted("sampler") {
        sampler::run(options.seconds).await;
    }
    if wanted("evaluate") {
        rules::evaluate(options.seconds);
    }
    if wanted("rules") {
        rules::ingest(cluster.as_ref(), &options).await;
    }
    if let Some("sampler" | "evaluate" | "rules") = options.only.as_deref() {
        return ExitCode::SUCCESS;
    }
    let mut server = Server::start(own.or(options.database_url.clone()));
    server.serving().await;
    if wanted("start") {
        unary::start(&mut server).await;
    }
    if wanted("idle_memory") {
        unary::idle_memory(&server).await;
    }
    prepare(&server).await;
    if wanted("alert_latency") {
        unary::alert_latency(&server).await;
    }
    if wanted("ingest") {
        unary::ingest(&server, options.seconds).await;
    }
    if wanted("health_check") {
        unary::health_check(&server, options.seconds).await;
    }
    if wanted("get_alert") {
        unary::get_alert(&server, options.seconds).await;
    }
    if wanted("aggregate") {
        aggregate::aggregate(&server).await;
    }
    streams(&server, &options, wanted).await;
    ExitCode::SUCCESS
}

/// Checks, and figures that take long or need an empty database: whether they are as they should be. `None`: it is
/// none of them.
async fn by_name_only(name: &str, options: &Options, cluster: Option<&Cluster>, url: Option<String>) -> Option<bool> {
    match name {
        "guarantees" => Some(guarantees::check(cluster, options.cycles, options.seed).await),
        "schedules" => Some(schedules::check(options.zones)),
        "storm" => Some(storm::check(cluster.expect("--postgres"), options.events).await),
        "delivery_kills" => Some(deliveries::kills(url, options.cycles, options.seed).await),
        "delivery_latency" => {
            deliveries::latency(url).await;
            Some(true)
        }
        "storage_faults" => Some(storage_failing::check(options.postgres, options.cycles, options.seed).await),
        "crowd" => {
            crowd::run(url).await;
            Some(true)
        }
        "hostile" => {
            hostile::run(url).await;
            Some(true)
        }
        "job_kills" => Some(job_kills::check(url, options.cycles, options.seed).await),
        name if name == "jobs" || name.starts_with("jobs_") => {
            jobs::run(url, options, name).await;
            Some(true)
        }
        "deliveries" => {
            deliveries::rate(url).await;
            Some(true)
        }
        _ => None,
    }
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
            cooldown: Some(prost_types::Duration::default()),
            ..Default::default()
        };
        rules.create_alert_rule(pb::CreateAlertRuleRequest { alert_rule: Some(rule) }).await.unwrap();
    }
}

async fn create_camera(cameras: &mut CameraServiceClient<Channel>) {
    let camera = pb::Camera { id: "bench".into(), name: "bench".into(), ..Default::default() };
    let request = pb::CreateCameraRequest { camera: Some(camera) };
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
