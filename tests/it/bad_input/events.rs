//! Events and detections that cannot be.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use serde_json::json;
use watchpost::pb;

use super::{HUGE, failed_by_field, ready, refused, unharmed};
use crate::support::{
    TestServer, always,
    calls::{Reply, at, nanos, object, rows, seconds, strings},
    database::{Backend, on_both},
    detection, field, ingest,
};

/// Times that nothing can have happened at.
fn bad_times() -> Vec<Timestamp> {
    let ahead = SystemTime::now() + Duration::from_hours(25);
    let mut times = never();
    times.extend([Timestamp::from(ahead), at(253_402_300_799).unwrap()]);
    times
}

/// Times that cannot be.
fn never() -> Vec<Timestamp> {
    [
        (-1, 0),
        (-1, 999_999_999),
        (i64::MIN, 0),
        (i64::MAX, 0),
        (253_402_300_800, 0),
        (0, -1),
        (0, 1_000_000_000),
        (0, i32::MIN),
        (0, i32::MAX),
    ]
    .map(|(seconds, nanos)| Timestamp { seconds, nanos })
    .into()
}

async fn send(server: &TestServer, event: pb::Event, detections: Vec<pb::Detection>) -> Reply<pb::IngestEventResponse> {
    let event = Some(pb::Event {
        camera_id: if event.camera_id.is_empty() { "door".into() } else { event.camera_id.clone() },
        ..event
    });
    let request = pb::IngestEventRequest { event, detections, request_id: "r".into(), ..Default::default() };
    server.events().ingest_event(request).await
}

#[on_both]
async fn a_bad_event_is_refused(backend: Backend) {
    let server = ready(backend).await;
    let before = rows(&server).await;
    let any = pb::Event::default;
    for (event, path) in [
        (pb::Event { camera_id: "a b".into(), ..any() }, "event.camera_id"),
        (pb::Event { camera_id: "door\0".into(), ..any() }, "event.camera_id"),
        (pb::Event { camera_id: "x".repeat(65), ..any() }, "event.camera_id"),
        (pb::Event { batch_id: "x\0".into(), ..any() }, "event.batch_id"),
        (pb::Event { batch_id: "ü".repeat(256), ..any() }, "event.batch_id"),
        (pb::Event { risk_score: Some(-1), ..any() }, "event.risk_score"),
        (pb::Event { risk_score: Some(101), ..any() }, "event.risk_score"),
        (pb::Event { risk_score: Some(i32::MIN), ..any() }, "event.risk_score"),
        (pb::Event { risk_level: 5, ..any() }, "event.risk_level"),
        (pb::Event { risk_level: -1, ..any() }, "event.risk_level"),
        (pb::Event { summary: Some("\0".into()), ..any() }, "event.summary"),
        (pb::Event { summary: Some("s".repeat(65_537)), ..any() }, "event.summary"),
        (pb::Event { reasoning: Some("ü\0".into()), ..any() }, "event.reasoning"),
        (pb::Event { reasoning: Some("ü".repeat(65_537)), ..any() }, "event.reasoning"),
        (pb::Event { llm_prompt: Some("a\0".into()), ..any() }, "event.llm_prompt"),
        (pb::Event { llm_prompt: Some("p".repeat(1_048_577)), ..any() }, "event.llm_prompt"),
        (pb::Event { clip_path: Some("\0".into()), ..any() }, "event.clip_path"),
        (pb::Event { clip_path: Some("c".repeat(1025)), ..any() }, "event.clip_path"),
        (pb::Event { started_at: at(10), ended_at: at(9), ..any() }, "event.ended_at"),
        (pb::Event { ended_at: at(9), ..any() }, "event.ended_at"),
    ] {
        refused(send(&server, event, vec![]).await, path);
    }
    for time in bad_times() {
        refused(send(&server, pb::Event { started_at: Some(time), ..any() }, vec![]).await, "event.started_at");
        refused(
            send(&server, pb::Event { started_at: at(1), ended_at: Some(time), ..any() }, vec![]).await,
            "event.ended_at",
        );
    }
    for time in never() {
        refused(send(&server, pb::Event { snooze_until: Some(time), ..any() }, vec![]).await, "event.snooze_until");
    }
    let missing = pb::IngestEventRequest {
        detections: vec![detection("dog", 1.0)],
        request_id: "r".into(),
        ..Default::default()
    };
    refused(server.events().ingest_event(missing).await, "event");
    let no_camera = pb::IngestEventRequest { event: Some(any()), ..Default::default() };
    refused(server.events().ingest_event(no_camera).await, "event.camera_id");
    for request_id in ["ü".repeat(129), "a\0".into(), "x".repeat(HUGE)] {
        let request = pb::IngestEventRequest { request_id, ..ingest("door", vec![]) };
        refused(server.events().ingest_event(request).await, "request_id");
    }
    unharmed(&server, &before).await;
    server.stop().await;
}

#[on_both]
async fn a_bad_detection_is_refused_by_its_place(backend: Backend) {
    let server = ready(backend).await;
    let before = rows(&server).await;
    let any = pb::Detection::default;
    let sized =
        |x, y, width, height| pb::Detection { bbox_x: x, bbox_y: y, bbox_width: width, bbox_height: height, ..any() };
    let one = Some(1);
    for (seen, name) in [
        (pb::Detection { camera_id: "gate".into(), ..any() }, "camera_id"),
        (pb::Detection { camera_id: "Door".into(), ..any() }, "camera_id"),
        (pb::Detection { file_path: "\0".into(), ..any() }, "file_path"),
        (pb::Detection { file_path: "f".repeat(1025), ..any() }, "file_path"),
        (pb::Detection { file_type: Some("\0".into()), ..any() }, "file_type"),
        (pb::Detection { file_type: Some("f".repeat(256)), ..any() }, "file_type"),
        (detection("", 0.5), "object_type"),
        (detection(" \t", 0.5), "object_type"),
        (detection("a,b", 0.5), "object_type"),
        (detection("a\0", 0.5), "object_type"),
        (detection(&"ü".repeat(256), 0.5), "object_type"),
        (detection("dog", -0.000_001), "confidence"),
        (detection("dog", 1.000_001), "confidence"),
        (detection("dog", f64::NAN), "confidence"),
        (detection("dog", f64::INFINITY), "confidence"),
        (detection("dog", f64::NEG_INFINITY), "confidence"),
        (sized(one, None, None, None), "bbox_y"),
        (sized(None, one, one, one), "bbox_x"),
        (sized(one, one, None, one), "bbox_width"),
        (sized(one, one, one, None), "bbox_height"),
        (sized(one, one, Some(-1), one), "bbox_width"),
        (sized(one, one, one, Some(i32::MIN)), "bbox_height"),
        (pb::Detection { thumbnail_path: Some("t".repeat(1025)), ..any() }, "thumbnail_path"),
        (pb::Detection { thumbnail_path: Some("\0".into()), ..any() }, "thumbnail_path"),
        (pb::Detection { media_type: 3, ..any() }, "media_type"),
        (pb::Detection { media_type: -1, ..any() }, "media_type"),
        (pb::Detection { duration: nanos(-1), ..any() }, "duration"),
        (pb::Detection { duration: nanos(1_000_000_000), ..any() }, "duration"),
        (pb::Detection { duration: seconds(315_576_000_001), ..any() }, "duration"),
        (pb::Detection { video_codec: Some("c".repeat(65)), ..any() }, "video_codec"),
        (pb::Detection { video_codec: Some("\0".into()), ..any() }, "video_codec"),
        (pb::Detection { video_width: Some(0), ..any() }, "video_width"),
        (pb::Detection { video_height: Some(-1), ..any() }, "video_height"),
        (pb::Detection { labels: strings(&["a", ""]), ..any() }, "labels[1]"),
        (pb::Detection { labels: strings(&[" "]), ..any() }, "labels[0]"),
        (pb::Detection { labels: strings(&["a\0"]), ..any() }, "labels[0]"),
        (pb::Detection { labels: vec!["l".repeat(256)], ..any() }, "labels[0]"),
        (pb::Detection { labels: vec!["l".into(); 65], ..any() }, "labels"),
    ] {
        let seen = vec![any(), seen, any()];
        refused(send(&server, pb::Event::default(), seen).await, &format!("detections[1].{name}"));
    }
    for time in bad_times() {
        let seen = pb::Detection { detected_at: Some(time), ..any() };
        refused(send(&server, pb::Event::default(), vec![seen]).await, "detections[0].detected_at");
    }
    unharmed(&server, &before).await;
    server.stop().await;
}

#[on_both]
async fn free_form_data_that_json_cannot_hold_is_refused_by_its_path(backend: Backend) {
    use prost_types::{Struct, Value, value::Kind};
    let server = ready(backend).await;
    let before = rows(&server).await;
    let number =
        |number| Struct { fields: [("n".to_string(), Value { kind: Some(Kind::NumberValue(number)) })].into() };
    let long = "k".repeat(30_000);
    for (data, path) in [
        (object(&json!({"a": "x\0"})), ".a"),
        (object(&json!({"a": {"b": [1, {"c": "\0"}]}})), ".a.b[1].c"),
        (object(&json!({"a": [{"b\0": 1}]})), ".a[0].b\0"),
        (object(&json!({"\0": {}})), ".\0"),
        (Some(number(f64::NAN)), ".n"),
        (Some(number(f64::INFINITY)), ".n"),
        (Some(number(f64::NEG_INFINITY)), ".n"),
    ] {
        let seen = pb::Detection { enrichment_data: data, ..Default::default() };
        refused(send(&server, pb::Event::default(), vec![seen]).await, &format!("detections[0].enrichment_data{path}"));
    }
    // A path that is too long for an answer is shortened.
    let seen = pb::Detection { enrichment_data: object(&json!({&long: {&long: "\0"}})), ..Default::default() };
    let status = failed_by_field(send(&server, pb::Event::default(), vec![seen]).await);
    let path = field(&status);
    assert!(path.starts_with("detections[0].enrichment_data.kkk") && path.len() < 256, "{}", path.len());
    unharmed(&server, &before).await;
    server.stop().await;
}

#[on_both]
async fn a_refused_event_raises_nothing_and_frees_its_keys(backend: Backend) {
    let server = ready(backend).await;
    server.rule(pb::AlertRule { cooldown: seconds(60), ..always("once") }).await;
    let event = pb::Event { batch_id: "b".into(), ..Default::default() };
    refused(send(&server, event.clone(), vec![detection("dog", 2.0)]).await, "detections[0].confidence");
    let stored = send(&server, event, vec![detection("dog", 1.0)]).await.unwrap().into_inner();
    assert!(!stored.replayed && stored.alerts.len() == 2);
    server.stop().await;
}
