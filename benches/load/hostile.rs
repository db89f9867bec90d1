//! What a single large request takes: the memory of the server beside what it had before, and how long others wait.

use std::time::{Duration, Instant};

use prost_types::{ListValue, Struct, Value, value::Kind};
use serde_json::json;
use tokio::{sync::oneshot, time::sleep};
use tonic::{Status, codec::CompressionEncoding, transport::Channel};
use watchpost::pb::{
    self, camera_service_client::CameraServiceClient, camera_zone_service_client::CameraZoneServiceClient,
    event_service_client::EventServiceClient, job_service_client::JobServiceClient,
};

use super::{create_camera, millis, server::Server};

const GOAL: &str = "<= 64 MiB, others wait <= 100 ms";

/// How often others call.
const EVERY: Duration = Duration::from_millis(2);

/// Sends each of the requests on its own.
pub async fn run(url: Option<String>) {
    let server = Server::start(url);
    server.serving().await;
    let channel = server.connect().await;
    create_camera(&mut CameraServiceClient::new(channel.clone())).await;
    let jobs = || JobServiceClient::new(channel.clone()).send_compressed(CompressionEncoding::Gzip);
    let bomb = payload(&"k".repeat(1_000_000), 100_000);
    measure(&server, "long_key", Box::pin(jobs().create_job(job(bomb)))).await;
    let large = payload("k", 95_000);
    measure(&server, "largest_payload", Box::pin(jobs().create_job(job(large)))).await;
    let elements = pb::BatchCreateJobsRequest { requests: vec![pb::CreateJobRequest::default(); 2_000_000] };
    measure(&server, "empty_elements", jobs().batch_create_jobs(elements)).await;
    let requests = (0..10_000).map(|_| job(payload("k", 20)));
    let batch = pb::BatchCreateJobsRequest { requests: requests.collect() };
    measure(&server, "batch_of_10000_jobs", jobs().batch_create_jobs(batch)).await;
    zones(&channel).await;
    let request = pb::IngestEventRequest { detections: (0..1_000).map(detection).collect(), ..super::request() };
    let mut events = EventServiceClient::new(channel.clone());
    measure(&server, "detections_in_zones", events.ingest_event(request)).await;
}

fn payload(key: &str, values: usize) -> Struct {
    let list = ListValue { values: vec![Value { kind: Some(Kind::NullValue(0)) }; values] };
    let kind = Some(Kind::ListValue(list));
    Struct { fields: [(key.to_string(), Value { kind })].into() }
}

fn job(payload: Struct) -> pb::CreateJobRequest {
    let job = pb::Job { job_type: "bench".into(), payload: Some(payload), ..Default::default() };
    pb::CreateJobRequest { job: Some(job), ..Default::default() }
}

/// 250 zones of 500 corners, which all detections must be compared with, by point and by overlap, and a rule that
/// names them.
async fn zones(channel: &Channel) {
    let mut zones = CameraZoneServiceClient::new(channel.clone());
    for number in 0..250 {
        let corner = |at: u32| {
            let angle = std::f64::consts::TAU * f64::from(at) / 500.0;
            let far = if at.is_multiple_of(2) { 0.5 } else { 0.3 };
            pb::Point { x: 0.5 + far * angle.cos(), y: 0.5 + far * angle.sin() }
        };
        let zone = pb::CameraZone {
            id: format!("z{number}"),
            camera_id: "bench".into(),
            name: format!("z{number}"),
            coordinates: (0..500).map(corner).collect(),
            shape: pb::CameraZoneShape::Polygon.into(),
            anchor: if number % 2 == 0 {
                pb::CameraZoneAnchor::Overlap.into()
            } else {
                pb::CameraZoneAnchor::Center.into()
            },
            // So that no zone ends the search.
            min_overlap: (number % 2 == 0).then_some(1.0),
            ..Default::default()
        };
        let request = pb::CreateCameraZoneRequest { camera_zone: Some(zone) };
        zones.create_camera_zone(request).await.unwrap();
    }
    let rule = pb::AlertRule {
        name: "zones".into(),
        zone_ids: (0..250).map(|number| format!("z{number}")).collect(),
        ..Default::default()
    };
    let request = pb::CreateAlertRuleRequest { alert_rule: Some(rule) };
    let mut rules = pb::alert_rule_service_client::AlertRuleServiceClient::new(channel.clone());
    rules.create_alert_rule(request).await.unwrap();
}

/// In a corner of the picture, which no zone covers, but all have sides at its height.
fn detection(number: i32) -> pb::Detection {
    pb::Detection {
        object_type: Some("person".into()),
        confidence: Some(0.9),
        bbox_x: Some(number % 80),
        bbox_y: Some(100 + number % 800),
        bbox_width: Some(150),
        bbox_height: Some(300),
        video_width: Some(1_000),
        video_height: Some(1_000),
        ..Default::default()
    }
}

async fn measure<T>(server: &Server, name: &str, request: impl Future<Output = Result<T, Status>>) {
    let pid = server.child.id();
    // From here on the kernel notes the peak anew.
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    let before = memory(pid, "VmRSS:");
    let (stop, mut stopped) = oneshot::channel::<()>();
    let mut cameras = CameraServiceClient::new(server.connect().await);
    let others = tokio::spawn(async move {
        let mut longest = Duration::ZERO;
        while stopped.try_recv().is_err() {
            let begun = Instant::now();
            let request = pb::GetCameraRequest { id: "bench".into() };
            cameras.get_camera(request).await.unwrap();
            longest = longest.max(begun.elapsed());
            sleep(EVERY).await;
        }
        longest
    });
    let mut writers = EventServiceClient::new(server.connect().await);
    let (stop_writing, mut stopped) = oneshot::channel::<()>();
    let writing = tokio::spawn(async move {
        let mut longest = Duration::ZERO;
        while stopped.try_recv().is_err() {
            let begun = Instant::now();
            writers.ingest_event(super::request()).await.unwrap();
            longest = longest.max(begun.elapsed());
            sleep(EVERY).await;
        }
        longest
    });
    sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    let answer = request.await;
    let took = begun.elapsed();
    stop.send(()).unwrap();
    stop_writing.send(()).unwrap();
    let (read, written) = (others.await.unwrap(), writing.await.unwrap());
    let extra = memory(pid, "VmHWM:") - before;
    let answer = answer.map_or_else(|status| format!("{:?}", status.code()), |_| "Ok".into());
    server.report(
        &format!("hostile_{name}"),
        GOAL,
        &json!({
            "extra_mib": (extra * 10.0).round() / 10.0, "took_ms": millis(took), "answer": answer,
            "get_camera_max_ms": millis(read), "ingest_event_max_ms": millis(written),
        }),
    );
}

/// A figure of the process, in MiB.
fn memory(pid: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024.0
}
