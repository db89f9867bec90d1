//! A server whose tables are filled through the API, so that every column has a value that its service wrote.

mod gpus;
mod jobs;

use std::time::Duration;

use serde_json::json;
use watchpost::pb::{self, Severity, notification_channel::Kind};

pub use self::jobs::{cancel, claim, complete, fail, job, job_schedule, job_type, log, progress};
use super::read::type_client;
use crate::support::{
    TestServer,
    calls::{at, execute, object, query, strings},
    database::{Backend, TestDatabase},
    detection, eventually, in_seconds, quiet,
    receiver::{Answer, Receiver},
};

const SECRET: &str = "whsec_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";

/// A server whose tables are filled, and that does nothing by itself any more.
pub async fn server(backend: Backend) -> TestServer {
    let server = started(backend).await;
    cameras(&server).await;
    jobs::fill(&server).await;
    alerts(&server).await;
    gpus::fill(&server).await;
    server
}

/// A server that may send notifications to loopback.
pub async fn started(backend: Backend) -> TestServer {
    let database = TestDatabase::migrated(backend).await;
    TestServer::start_with(database, |settings| {
        settings.notification_networks = vec!["127.0.0.0/8".parse().unwrap()];
        settings.notification_retry = Duration::from_hours(1);
    })
    .await
}

/// Waits until a query gives a row.
pub async fn row_exists(server: &TestServer, sql: &str) {
    eventually(&format!("a row of {sql}"), async || !query(server, sql).await.is_empty()).await;
}

#[expect(clippy::unnecessary_wraps, reason = "a field of a message")]
pub fn span(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

async fn cameras(server: &TestServer) {
    for id in ["porch", "gate", "gone"] {
        let camera = pb::Camera {
            id: id.into(),
            name: format!("The {id}"),
            folder_path: format!("/{id}"),
            status: pb::CameraStatus::Offline.into(),
            ..Default::default()
        };
        let request = pb::CreateCameraRequest { camera: Some(camera) };
        server.cameras().create_camera(request).await.unwrap();
    }
    let request = pb::DeleteCameraRequest { id: "gone".into() };
    server.cameras().delete_camera(request).await.unwrap();
    server.zone(zone("steps")).await;
}

/// A zone with everything that there is.
pub fn zone(id: &str) -> pb::CameraZone {
    let corners = [(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)];
    pb::CameraZone {
        id: id.into(),
        camera_id: "porch".into(),
        name: format!("The {id}"),
        zone_type: pb::CameraZoneType::EntryPoint.into(),
        coordinates: corners.map(|(x, y)| pb::Point { x, y }).into(),
        shape: pb::CameraZoneShape::Polygon.into(),
        color: Some("#A0B0C0".into()),
        enabled: Some(false),
        priority: 3,
        anchor: pb::CameraZoneAnchor::Overlap.into(),
        min_overlap: Some(0.75),
        created_at: None,
        updated_at: None,
        version_id: 0,
    }
}

/// A rule with everything that there is, which never fires.
pub fn rule(name: &str) -> pb::AlertRule {
    let rule = pb::AlertRule {
        name: name.into(),
        description: Some("Somebody at night.".into()),
        enabled: Some(false),
        severity: Severity::High.into(),
        risk_threshold: Some(60),
        object_types: strings(&["person"]),
        camera_ids: strings(&["porch"]),
        zone_ids: strings(&["steps"]),
        min_confidence: Some(0.5),
        schedule: Some(schedule()),
        dedup_key_template: Some("{camera_id}".into()),
        channels: strings(&["ops"]),
        flap_threshold: Some(5),
        escalation: vec![escalation(3_600)],
        ..Default::default()
    };
    with_cooldown(rule, 3_600, Some(7_200))
}

/// The lengths of time of a rule: of its cooldown, and of its flap window.
pub fn with_cooldown(rule: pb::AlertRule, cooldown: i32, flap_window: Option<i32>) -> pb::AlertRule {
    pb::AlertRule {
        cooldown: span(cooldown.into()),
        flap_window: flap_window.and_then(|seconds| span(seconds.into())),
        ..rule
    }
}

/// A step that tells the channel `later` after so many seconds.
pub fn escalation(after: i32) -> pb::EscalationStep {
    pb::EscalationStep { after: span(after.into()), channels: strings(&["later"]) }
}

pub fn schedule() -> pb::Schedule {
    pb::Schedule {
        days: vec![pb::DayOfWeek::Sunday.into()],
        start_time: "22:00".into(),
        end_time: "06:00".into(),
        time_zone: "Europe/Berlin".into(),
    }
}

/// A webhook with everything that there is.
pub fn channel(name: &str, url: String) -> pb::NotificationChannel {
    pb::NotificationChannel {
        name: name.into(),
        description: Some("Whoever is on duty.".into()),
        quiet_times: vec![pb::Schedule { start_time: "04:00".into(), end_time: "04:01".into(), ..schedule() }],
        quiet_except: Severity::Medium.into(),
        kind: Some(Kind::Webhook(pb::WebhookChannel {
            url,
            signing_secrets: strings(&[SECRET]),
            headers: [("x-team".into(), "red".into())].into(),
            timeout: span(9),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// A silence with everything that there is, which is still to begin.
pub fn silence() -> pb::Silence {
    pb::Silence {
        severities: vec![Severity::Critical.into()],
        starts_at: in_seconds(3_600),
        ends_at: in_seconds(7_200),
        ..quiet("porch")
    }
}

/// An event with everything that there is.
fn event() -> pb::Event {
    pb::Event {
        batch_id: "batch-1".into(),
        camera_id: "porch".into(),
        started_at: at(1_772_366_400),
        ended_at: at(1_772_366_430),
        risk_score: Some(80),
        risk_level: Severity::High.into(),
        summary: Some("A person.".into()),
        reasoning: Some("It has legs.".into()),
        llm_prompt: Some("What is it?".into()),
        is_fast_path: true,
        object_types: strings(&["person"]),
        clip_path: Some("/porch/1.mp4".into()),
        snooze_until: in_seconds(3_600),
        ..Default::default()
    }
}

fn full_detection() -> pb::Detection {
    pb::Detection {
        id: 0,
        camera_id: String::new(),
        file_path: "/porch/1.mp4".into(),
        file_type: Some("video/mp4".into()),
        detected_at: at(1_772_366_410),
        object_type: Some("person".into()),
        confidence: Some(0.75),
        bbox_x: Some(10),
        bbox_y: Some(20),
        bbox_width: Some(30),
        bbox_height: Some(40),
        thumbnail_path: Some("/porch/1.jpg".into()),
        media_type: pb::MediaType::Video.into(),
        duration: Some(prost_types::Duration { seconds: 12, nanos: 500_000_000 }),
        video_codec: Some("h264".into()),
        video_width: Some(640),
        video_height: Some(480),
        enrichment_data: object(&json!({"pet": {"breed": "beagle"}})),
        labels: strings(&["suspicious"]),
    }
}

/// Events, rules, silences, channels, and the alerts and deliveries that come of them.
async fn alerts(server: &TestServer) {
    let (receiver, gone) = (Receiver::start().await, Receiver::start().await);
    gone.answer(Answer::Status(410, vec![]));
    server.notification_channel(channel("ops", receiver.url())).await;
    server.notification_channel(channel("gone", gone.url())).await;
    let later = pb::NotificationChannel { enabled: Some(false), ..channel("later", gone.url()) };
    server.notification_channel(later).await;
    let full = server.rule(rule("full")).await;
    let firing = pb::AlertRule {
        name: "firing".into(),
        severity: Severity::High.into(),
        channels: strings(&["ops", "gone"]),
        escalation: vec![escalation(3_600)],
        dedup_key_template: Some("{object_type}".into()),
        ..Default::default()
    };
    let firing = server.rule(with_cooldown(firing, 3_600, None)).await;
    let silence = server.silence(silence()).await;
    updates(server, &full.id, &silence.id).await;
    let rules =
        pb::Silence { rule_ids: vec![firing.id.clone()], severities: vec![Severity::High.into()], ..quiet("gate") };
    server.silence(rules).await;
    let everything = pb::Silence {
        camera_ids: vec![],
        match_all: true,
        starts_at: in_seconds(36_000),
        ends_at: in_seconds(72_000),
        ..quiet("porch")
    };
    server.silence(everything).await;

    // Each answer of the receiver leaves other columns behind.
    let answers = [
        Answer::Status(204, vec![]),
        Answer::Status(400, vec![]),
        Answer::Status(429, vec![("retry-after", "3600".into())]),
    ];
    let mut raised = Vec::new();
    for (answer, kind) in answers.into_iter().zip(["person", "dog", "cat"]) {
        receiver.answer(answer);
        let reply = server.ingest("porch", vec![detection(kind, 0.5)]).await;
        raised.extend(reply.alerts);
        receiver.wait_for(raised.len()).await;
        let attempted = "channel_name = 'ops' AND attempts = 1 AND lease_id IS NULL";
        let count = format!("SELECT count(*) AS n FROM deliveries WHERE {attempted}");
        let all = format!("SELECT 1 FROM ({count}) AS attempted WHERE n = {}", raised.len());
        row_exists(server, &all).await;
    }
    row_exists(server, "SELECT 1 FROM notification_channels WHERE NOT enabled").await;
    row_exists(server, "SELECT 1 FROM notification_channels WHERE throttled_until IS NOT NULL").await;
    let deleted = server.ingest("porch", vec![]).await.event.unwrap().id;
    let request = pb::DeleteEventRequest { id: deleted };
    server.events().delete_event(request).await.unwrap();
    // A repeat, one that is silenced, and one of which everything is known.
    server.ingest("porch", vec![detection("person", 0.5)]).await;
    server.ingest("gate", vec![detection("person", 0.5)]).await;
    let request =
        pb::IngestEventRequest { event: Some(event()), detections: vec![full_detection()], ..Default::default() };
    let event = server.events().ingest_event(request).await.unwrap();
    let id = event.into_inner().event.unwrap().id;
    let request = pb::ReviewEventRequest { id, reviewed: Some(true), notes: Some("The postman.".into()) };
    server.events().review_event(request).await.unwrap();

    let alert = pb::Alert {
        event_id: id,
        severity: Severity::Low.into(),
        dedup_key: "by-hand".into(),
        metadata: object(&json!({"seen": "twice"})),
        ..Default::default()
    };
    let request =
        pb::CreateAlertRequest { alert: Some(alert), actor: "ann".into(), reason: "seen".into(), ..Default::default() };
    server.alerts().create_alert(request).await.unwrap();
    let request = pb::AcknowledgeAlertRequest {
        id: raised[0].id.clone(),
        actor: "ann".into(),
        reason: "known".into(),
        ..Default::default()
    };
    server.alerts().acknowledge_alert(request).await.unwrap();
    let request = pb::DismissAlertRequest { id: raised[0].id.clone(), actor: "bob".into(), ..Default::default() };
    server.alerts().dismiss_alert(request).await.unwrap();
    // Nothing is sent while columns of channels are changed.
    let later = "UPDATE deliveries SET next_attempt_at = '2032-01-02T03:04:05+00:00' WHERE status = 'queued'";
    execute(server, later).await;
}

/// Updates resources, so that they have another version than the first.
async fn updates(server: &TestServer, rule_id: &str, silence_id: &str) {
    let alert_rule =
        pb::AlertRule { id: rule_id.into(), description: Some("Anybody at night.".into()), ..Default::default() };
    let request = pb::UpdateAlertRuleRequest { alert_rule: Some(alert_rule), ..Default::default() };
    server.rules().update_alert_rule(request).await.unwrap();
    let silence = pb::Silence { id: silence_id.into(), reason: "rain".into(), ..Default::default() };
    let request = pb::UpdateSilenceRequest { silence: Some(silence), ..Default::default() };
    server.silences().update_silence(request).await.unwrap();
    let camera_zone = pb::CameraZone { id: "steps".into(), priority: 5, ..Default::default() };
    let request = pb::UpdateCameraZoneRequest { camera_zone: Some(camera_zone), ..Default::default() };
    server.zones().update_camera_zone(request).await.unwrap();
    for description in ["Trains.", "Trains models."] {
        let job_type = pb::JobType { description: Some(description.into()), ..job_type() };
        let request = pb::UpdateJobTypeRequest { job_type: Some(job_type), ..Default::default() };
        type_client(server).update_job_type(request).await.unwrap();
    }
}
