//! What rules cost: judging alone, and beside the rest of an ingest.

use std::{
    collections::HashMap,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use tonic::transport::Channel;
use uuid::Uuid;
use watchpost::{
    alerts::engine::{evaluate::EventFacts, index::Index, rule::Rule},
    entity::{
        Strings,
        alert::AlertSeverity,
        camera_zone::{self, ZoneAnchor, ZoneShape, ZoneType},
        detection, event,
    },
    pb::{
        self, alert_rule_service_client::AlertRuleServiceClient, camera_service_client::CameraServiceClient,
        camera_zone_service_client::CameraZoneServiceClient, event_service_client::EventServiceClient,
    },
    zones::ZoneSet,
};

use crate::{
    Options,
    cluster::Cluster,
    guarantees, per_second,
    server::Server,
    unary::{INGESTS_IN_FLIGHT, closed_loop},
};

const RULES: usize = 1_000;
const FEW: usize = 10;
const DETECTIONS: usize = 5;
const TYPES: [&str; 6] = ["person", "car", "dog", "cat", "bicycle", "truck"];
const TIMEZONES: [&str; 4] = ["Europe/Berlin", "America/New_York", "Asia/Tokyo", "UTC"];

/// Events a second that one thread judges by a thousand rules with polygons and schedules.
pub fn evaluate(seconds: u64) {
    for cameras in [10, 100, 1_000, 10_000] {
        evaluate_by(cameras, true, seconds);
    }
    // Each of them asks for a zone of every camera, so that every event concerns every rule.
    evaluate_by(10, false, seconds);
}

fn evaluate_by(cameras: usize, by_camera: bool, seconds: u64) {
    let mut random = fastrand::Rng::with_seed(1);
    let zones = (0..cameras).flat_map(|camera| [zone(camera, 0), zone(camera, 1)]);
    let zones = Arc::new(ZoneSet::compile(zones.collect()));
    let rules = (0..RULES).map(|number| rule(&mut random, number, cameras, by_camera));
    let index = Index::new(Arc::new(rules.collect()), zones.clone());
    let events: Vec<_> = (0..1_000).map(|_| event(&mut random, cameras)).collect();

    let (mut judged, mut matched) = (0, 0);
    let (begun, most) = (Instant::now(), Duration::from_secs(seconds));
    while begun.elapsed() < most {
        for (event, detections) in &events {
            let facts = EventFacts::of(event, detections, zones.clone());
            matched += black_box(index.matches(&facts)).len();
        }
        judged += events.len();
    }
    let line = json!({
        "figure": "evaluate",
        "goal": ">= 20000 events/s",
        "rules": RULES,
        "cameras": cameras,
        "rules_name_cameras": by_camera,
        "per_second": per_second(judged, begun.elapsed()),
        "matches_per_1000_events": matched * 1_000 / judged,
    });
    println!("{line}");
}

/// A polygon with eight corners, in the left or the right half of the picture.
fn corners(half: usize) -> Vec<[f64; 2]> {
    let middle = if half == 0 { 0.25 } else { 0.75 };
    let corner = |at: u32| {
        let angle = f64::from(at) * std::f64::consts::FRAC_PI_4 + 0.1;
        let radius = if at.is_multiple_of(2) { 0.24 } else { 0.15 };
        [middle + radius * angle.cos(), 0.5 + radius * angle.sin()]
    };
    (0..8).map(corner).collect()
}

fn zone(camera: usize, half: usize) -> camera_zone::Model {
    let now = Utc::now();
    camera_zone::Model {
        id: format!("c{camera}-{half}"),
        camera_id: format!("c{camera}"),
        name: "z".into(),
        zone_type: ZoneType::Other,
        coordinates: json!(corners(half)),
        shape: ZoneShape::Polygon,
        color: "#3B82F6".into(),
        enabled: true,
        priority: 0,
        created_at: now,
        updated_at: now,
        anchor: ZoneAnchor::Foot,
        min_overlap: None,
        version_id: 1,
    }
}

/// A rule with every condition, which few events meet.
fn rule(random: &mut fastrand::Rng, number: usize, cameras: usize, by_camera: bool) -> Rule {
    let half = random.usize(..2);
    let camera = number % cameras;
    let zone_ids = if by_camera {
        vec![format!("c{camera}-{half}")]
    } else {
        (0..cameras).map(|camera| format!("c{camera}-{half}")).collect()
    };
    let types = [random.usize(..TYPES.len()), random.usize(..TYPES.len())];
    let begins = random.u32(..24);
    let schedule = json!({
        "days": ["monday", "tuesday", "thursday", "saturday"],
        "start_time": format!("{begins:02}:00"),
        "end_time": format!("{:02}:30", (begins + 8) % 24),
        "timezone": TIMEZONES[random.usize(..TIMEZONES.len())],
    });
    Rule {
        id: Uuid::now_v7(),
        name: format!("rule {number}"),
        severity: AlertSeverity::Medium,
        risk_threshold: Some(random.i32(20..80)),
        object_types: types.map(|at| TYPES[at].to_string()).into(),
        camera_ids: by_camera.then(|| format!("c{camera}")).into_iter().collect(),
        zone_ids: zone_ids.into_iter().collect(),
        min_confidence: Some(0.8),
        schedule: serde_json::from_value(schedule)
            .ok()
            .map(|schedule| watchpost::alerts::engine::schedule::Schedule::compile(&schedule).unwrap()),
        template: watchpost::alerts::engine::template::Template::parse("t", "{camera_id}").unwrap(),
        cooldown_us: 300_000_000,
        channels: None::<Strings>,
        escalation: Vec::new().into(),
        flap_limit: None,
        conditions: Vec::new(),
    }
}

fn event(random: &mut fastrand::Rng, cameras: usize) -> (event::Model, Vec<detection::Model>) {
    let first: DateTime<Utc> = "2026-11-16T00:00:00Z".parse().unwrap();
    let started_at = first + TimeDelta::seconds(random.i64(0..7 * 86_400));
    let camera_id = format!("c{}", random.usize(..cameras));
    let detections = (0..DETECTIONS).map(|_| detection::Model {
        id: 0,
        camera_id: camera_id.clone(),
        file_path: String::new(),
        file_type: None,
        detected_at: started_at,
        object_type: Some(TYPES[random.usize(..TYPES.len())].into()),
        confidence: Some(random.f64()),
        bbox_x: Some(random.i32(0..1_700)),
        bbox_y: Some(random.i32(0..900)),
        bbox_width: Some(200),
        bbox_height: Some(150),
        thumbnail_path: None,
        media_type: None,
        duration: None,
        video_codec: None,
        video_width: Some(1_920),
        video_height: Some(1_080),
        enrichment_data: None,
        labels: None,
    });
    let detections = detections.collect();
    let event = event::Model {
        id: 0,
        batch_id: String::new(),
        camera_id,
        started_at,
        ended_at: None,
        risk_score: Some(random.i32(0..=100)),
        risk_level: None,
        summary: None,
        reasoning: None,
        llm_prompt: None,
        reviewed: false,
        notes: None,
        is_fast_path: false,
        object_types: None,
        clip_path: None,
        deleted_at: None,
        snooze_until: None,
    };
    (event, detections)
}

/// Events a second with ten rules and with a thousand, each on a server and a database of its own. One of them
/// fires; the others meet all but their last condition, the zone.
pub async fn ingest(cluster: Option<&Cluster>, options: &Options) {
    let mut rates = HashMap::new();
    for rules in [FEW, RULES] {
        let url = match cluster {
            Some(cluster) => Some(guarantees::database(cluster, &format!("rules_{rules}")).await),
            None => None,
        };
        let server = Server::start(url);
        server.serving().await;
        prepare(&server, rules).await;
        let call = |channel: Channel, _| async move {
            let mut events = EventServiceClient::new(channel);
            let request = crate::request();
            let response = events.ingest_event(request).await.unwrap().into_inner();
            assert_eq!(response.alerts.len(), 1);
        };
        let mut values = closed_loop(&server, INGESTS_IN_FLIGHT, options.seconds, call).await;
        values["rules"] = rules.into();
        let rate = values["per_second"].as_f64().unwrap();
        rates.insert(rules, rate);
        values["ratio"] = ((rate / rates[&FEW] * 100.0).round() / 100.0).into();
        server.report("rules", "ratio >= 0.9", &values);
    }
}

async fn prepare(server: &Server, rules: usize) {
    let channel = server.connect().await;
    crate::create_camera(&mut CameraServiceClient::new(channel.clone())).await;
    let zone = pb::CameraZone {
        id: "corner".into(),
        camera_id: "bench".into(),
        name: "corner".into(),
        shape: pb::CameraZoneShape::Polygon.into(),
        // What is seen is left of it.
        coordinates: corners(1).into_iter().map(|[x, y]| pb::Point { x, y }).collect(),
        ..Default::default()
    };
    let request = pb::CreateCameraZoneRequest { camera_zone: Some(zone) };
    let mut zones = CameraZoneServiceClient::new(channel.clone());
    zones.create_camera_zone(request).await.unwrap();
    let mut client = AlertRuleServiceClient::new(channel);
    for number in 0..rules {
        let fires = number == 0;
        let rule = pb::AlertRule {
            name: format!("rule {number}"),
            object_types: vec!["person".into(), "car".into()],
            min_confidence: Some(0.5),
            risk_threshold: Some(50),
            schedule: Some(pb::Schedule {
                time_zone: TIMEZONES[number % TIMEZONES.len()].into(),
                ..Default::default()
            }),
            zone_ids: if fires { vec![] } else { vec!["corner".into()] },
            cooldown: Some(prost_types::Duration::default()),
            ..Default::default()
        };
        let request = pb::CreateAlertRuleRequest { alert_rule: Some(rule) };
        client.create_alert_rule(request).await.unwrap();
    }
}
