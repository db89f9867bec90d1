//! What is stored of an event, and what is answered.

use std::collections::HashSet;

use serde_json::json;
use watchpost::pb::{self, MediaType, Severity};

use super::{detections_of, event, get, list_detections, list_events, request, send, store, without_camera};
use crate::support::{
    TestServer, always,
    calls::{at, not_found, object, refused, rows, strings},
    database::{Backend, on_both},
    detection,
};

/// An event in which everything is set that a client can set.
fn full_event() -> pb::Event {
    pb::Event {
        batch_id: "batch 7 🎞".into(),
        started_at: Some(prost_types::Timestamp { seconds: 1_000_000, nanos: 123_456_789 }),
        ended_at: at(1_000_001),
        risk_score: Some(100),
        risk_level: Severity::Low.into(),
        summary: Some("Ein Mann \u{1F468}\u{200D}\u{1F469}\n\"'%_\\".into()),
        reasoning: Some(String::new()),
        llm_prompt: Some("{\"role\": \"user\"}".into()),
        is_fast_path: true,
        clip_path: Some("/clips/1.mp4".into()),
        snooze_until: at(253_402_300_799),
        ..event()
    }
}

/// A detection in which everything is set that a client can set.
fn full_detection() -> pb::Detection {
    pb::Detection {
        camera_id: "door".into(),
        file_path: "/a/ö.jpg".into(),
        file_type: Some("image/jpeg".into()),
        detected_at: at(1_000_000),
        bbox_x: Some(i32::MIN),
        bbox_y: Some(-1),
        bbox_width: Some(0),
        bbox_height: Some(i32::MAX),
        thumbnail_path: Some(String::new()),
        media_type: MediaType::Video.into(),
        duration: Some(prost_types::Duration { seconds: 86_400, nanos: 123_456_789 }),
        video_codec: Some("hevc".into()),
        video_width: Some(1),
        video_height: Some(i32::MAX),
        enrichment_data: object(&json!({
            "": null, "a.b[0]": [[], {}, [{"deep": [true, "x", -1.5]}]], "\u{7f}é\"\\": "\n\t🎥",
            "big": 1e300, "small": 5e-324, "whole": 9_007_199_254_740_993_i64, "sum": 0.1 + 0.2, "third": 1.0 / 3.0
        })),
        labels: strings(&["one", "one", "zwei 🎥, drei"]),
        ..detection("Traffic Light", 0.1 + 0.2)
    }
}

#[on_both]
async fn an_event_is_stored_and_answered_as_it_was_sent(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let output_only = pb::Event {
        id: 99,
        reviewed: true,
        notes: Some("x".into()),
        object_types: strings(&["y"]),
        deleted_at: at(1),
        ..full_event()
    };
    let sent = pb::Detection { id: 98, ..full_detection() };
    let stored = store(&server, pb::IngestEventRequest { detections: vec![sent], ..request(output_only) }).await;
    let event = stored.event.clone().unwrap();
    assert!(event.id > 0 && !stored.replayed);
    let micros = prost_types::Timestamp { seconds: 1_000_000, nanos: 123_456_000 };
    let expected =
        pb::Event { id: event.id, started_at: Some(micros), object_types: strings(&["traffic light"]), ..full_event() };
    assert_eq!(event, expected);
    assert_eq!(get(&server, event.id).await.unwrap().into_inner(), event);
    assert_eq!(
        list_events(&server, pb::EventFilter::default()).await,
        [pb::Event { llm_prompt: None, ..event.clone() }]
    );

    let id = stored.detections[0].id;
    assert_eq!(stored.detections, [pb::Detection { id, ..full_detection() }]);
    assert_eq!(detections_of(&server, event.id).await, stored.detections);
    server.stop().await;
}

#[on_both]
async fn what_is_left_out_gets_its_default(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let stored =
        store(&server, pb::IngestEventRequest { detections: vec![pb::Detection::default()], ..request(event()) }).await;
    let got = stored.event.unwrap();
    let (started_at, batch_id) = (got.started_at, got.batch_id.clone());
    assert!(started_at.is_some_and(|time| time.seconds > 1_700_000_000));
    assert_eq!(batch_id.len(), 36);
    assert_eq!(got, pb::Event { id: got.id, batch_id, started_at, ..event() });
    let expected = pb::Detection {
        id: stored.detections[0].id,
        camera_id: "door".into(),
        detected_at: started_at,
        media_type: MediaType::Image.into(),
        ..Default::default()
    };
    assert_eq!(stored.detections, [expected]);

    // An event begins with its first detection, and a detection without a time is as old as the event.
    let seen = |seconds| pb::Detection { detected_at: at(seconds), ..Default::default() };
    let earliest =
        store(&server, pb::IngestEventRequest { detections: vec![seen(20), seen(10)], ..request(event()) }).await;
    assert_eq!(earliest.event.unwrap().started_at, at(10));
    let timed = pb::Event { started_at: at(30), ..event() };
    let given = store(
        &server,
        pb::IngestEventRequest { detections: vec![seen(20), pb::Detection::default()], ..request(timed) },
    )
    .await;
    assert_eq!(given.event.unwrap().started_at, at(30));
    assert_eq!([given.detections[0].detected_at, given.detections[1].detected_at], [at(20), at(30)]);
    server.stop().await;
}

#[on_both]
async fn the_risk_level_follows_the_score_unless_it_is_given(backend: Backend) {
    use Severity::{Critical, High, Low, Medium, Unspecified};
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    for (score, given, level) in [
        (None, Unspecified, Unspecified),
        (None, High, High),
        (Some(0), Unspecified, Low),
        (Some(29), Unspecified, Low),
        (Some(30), Unspecified, Medium),
        (Some(59), Unspecified, Medium),
        (Some(60), Unspecified, High),
        (Some(84), Unspecified, High),
        (Some(85), Unspecified, Critical),
        (Some(100), Unspecified, Critical),
        (Some(100), Low, Low),
    ] {
        let sent = pb::Event { risk_score: score, risk_level: given.into(), ..event() };
        let stored = store(&server, request(sent)).await.event.unwrap();
        assert_eq!((stored.risk_score, stored.risk_level()), (score, level));
        assert_eq!(get(&server, stored.id).await.unwrap().into_inner(), stored);
    }
    server.stop().await;
}

#[on_both]
async fn object_types_are_lower_case_and_each_once_in_order(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let types = ["Person", "CAR", "person", "ÄRA", "ära", " dog ", "a%_b"];
    let mut detections: Vec<_> = types.map(|name| detection(name, 0.5)).into();
    detections.insert(1, pb::Detection::default());
    let stored = store(&server, pb::IngestEventRequest { detections, ..request(event()) }).await;
    let sent: Vec<_> = stored.detections.iter().filter_map(|seen| seen.object_type.as_deref()).collect();
    assert_eq!(sent, types, "detections keep what was sent");
    let stored = stored.event.unwrap();
    assert_eq!(stored.object_types, ["person", "car", "ära", " dog ", "a%_b"]);
    assert_eq!(get(&server, stored.id).await.unwrap().into_inner(), stored);
    server.stop().await;
}

#[on_both]
async fn a_thousand_detections_keep_their_order(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let seen = |n: i32| pb::Detection {
        bbox_x: Some(n),
        bbox_y: Some(0),
        bbox_width: Some(0),
        bbox_height: Some(0),
        ..detection(&format!("t{n}"), 0.5)
    };
    let detections: Vec<_> = (0..1000).map(seen).collect();
    let sent = pb::IngestEventRequest { detections, ..request(event()) };
    let stored = store(&server, sent.clone()).await;
    let order: Vec<_> = stored.detections.iter().filter_map(|seen| seen.bbox_x).collect();
    assert_eq!(order, (0..1000).collect::<Vec<_>>());
    assert_eq!(detections_of(&server, stored.event.unwrap().id).await, stored.detections);
    let mut sent = sent;
    sent.detections.push(seen(0));
    let before = rows(&server).await;
    refused(send(&server, sent).await, "detections");
    assert_eq!(rows(&server).await, before);
    server.stop().await;
}

#[on_both]
async fn numbers_in_free_form_data_are_what_they_were(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    // Every one a different pattern of bits; few decimal digits would not be enough.
    let numbers =
        (0..2_000_u64).map(|n| f64::from_bits(0x3FE0_0000_0000_0000 ^ n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 8));
    let numbers: Vec<_> = numbers.filter(|number| number.is_finite()).collect();
    let seen = pb::Detection { enrichment_data: object(&json!({"numbers": numbers})), ..Default::default() };
    let stored = store(&server, pb::IngestEventRequest { detections: vec![seen.clone()], ..request(event()) }).await;
    // Too many to be printed.
    assert!(stored.detections[0].enrichment_data == seen.enrichment_data, "what is answered is what was sent");
    let listed = list_detections(&server, pb::DetectionFilter::default()).await;
    assert!(listed == stored.detections, "what is kept is what was sent");
    server.stop().await;
}

#[on_both]
async fn texts_may_be_as_long_as_promised(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    // Many words, of wide letters: the hardest for a search index.
    let words = |length: u32| {
        let letter = |n: u32| {
            if n % 3 == 2 { ' ' } else { char::from_u32(0x2_0000 + n * 7919 % 40_000).unwrap() }
        };
        (0..length).map(letter).collect::<String>()
    };
    let sent = pb::Event {
        batch_id: words(255),
        summary: Some(words(65_536)),
        reasoning: Some(words(65_536)),
        llm_prompt: Some("p".repeat(1_048_576)),
        clip_path: Some(words(1024)),
        ..event()
    };
    let seen = pb::Detection {
        file_path: words(1024),
        object_type: Some(words(255)),
        file_type: Some(words(255)),
        thumbnail_path: Some(words(1024)),
        video_codec: Some(words(64)),
        labels: (0..64).map(|n| words(253) + &format!("{n:02}")).collect(),
        enrichment_data: object(&json!({"text": "e".repeat(40_000), "vehicle": {"make": words(6_000)}})),
        ..Default::default()
    };
    let request_id = words(128);
    let stored = store(
        &server,
        pb::IngestEventRequest {
            event: Some(sent.clone()),
            detections: vec![seen.clone()],
            request_id,
            explain: false,
        },
    )
    .await;
    let got = get(&server, stored.event.unwrap().id).await.unwrap().into_inner();
    assert_eq!((got.summary, got.reasoning, got.llm_prompt), (sent.summary, sent.reasoning, sent.llm_prompt));
    assert_eq!(stored.detections[0].labels, seen.labels);
    assert_eq!(detections_of(&server, got.id).await, stored.detections);
    server.stop().await;
}

#[on_both]
async fn an_event_of_no_camera_leaves_nothing_behind(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.rule(always("everything")).await;
    server.camera("door").await;
    let delete = pb::DeleteCameraRequest { id: "door".into() };
    server.cameras().delete_camera(delete).await.unwrap();
    let before = rows(&server).await;
    for camera_id in ["door", "none", "Door"] {
        let sent = pb::Event { camera_id: camera_id.into(), batch_id: "b".into(), ..event() };
        let sent =
            pb::IngestEventRequest { detections: vec![detection("dog", 1.0)], request_id: "r".into(), ..request(sent) };
        for _ in 0..2 {
            without_camera(send(&server, sent.clone()).await);
        }
    }
    assert_eq!(rows(&server).await, before);
    // The keys of what failed are free.
    let restore = pb::RestoreCameraRequest { id: "door".into() };
    server.cameras().restore_camera(restore).await.unwrap();
    let sent = pb::Event { batch_id: "b".into(), ..event() };
    let stored = store(&server, pb::IngestEventRequest { request_id: "r".into(), ..request(sent) }).await;
    assert!(!stored.replayed && stored.alerts.len() == 1);
    server.stop().await;
}

#[on_both]
async fn a_bad_event_among_good_ones_fails_alone(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(always("everything")).await;
    let sent = (0..64).map(|n| {
        let camera_id = if n == 31 { "none" } else { "door" };
        let sent = pb::Event { camera_id: camera_id.into(), risk_score: Some(n), ..event() };
        let sent = pb::IngestEventRequest { detections: vec![detection("dog", 1.0); 3], ..request(sent) };
        let mut events = server.events();
        tokio::spawn(async move { events.ingest_event(sent).await })
    });
    let mut ids = HashSet::new();
    for (n, reply) in (0..).zip(sent.collect::<Vec<_>>()) {
        let reply = reply.await.unwrap();
        if n == 31 {
            without_camera(reply);
            continue;
        }
        let stored = reply.unwrap().into_inner();
        let event = stored.event.unwrap();
        assert_eq!((event.risk_score, stored.detections.len(), stored.alerts.len()), (Some(n), 3, 1));
        assert_eq!(stored.alerts[0].event_id, event.id);
        assert_eq!(detections_of(&server, event.id).await, stored.detections);
        ids.insert(event.id);
    }
    assert_eq!(ids.len(), 63);
    let events = list_events(&server, pb::EventFilter::default()).await;
    assert_eq!(events.len(), 50, "the default size of a page");
    let counted = rows(&server).await;
    assert!(counted.contains(&("events", 63)) && counted.contains(&("alerts", 63)), "{counted:?}");
    not_found(get(&server, i64::MAX).await, "event", i64::MAX);
    server.stop().await;
}
