//! `ExplainEvent`: why each rule matches a stored event or not.

use chrono::DateTime;
use tonic::Code;
use watchpost::pb::{
    self, RuleStop,
    SuppressionReason::{Cooldown, Snoozed},
};

use super::{delete, update};
use crate::support::{
    TestServer, always,
    calls::{Reply, at, failed, refused, seconds, strings},
    database::{Backend, on_both},
    detection, ingest, middle,
};

use RuleStop::{CameraIds, MinConfidence, ObjectTypes, RiskThreshold, Schedule, Unspecified, ZoneIds};

/// The start of the events, a Friday.
fn friday() -> i64 {
    let time = DateTime::parse_from_rfc3339("2026-11-20T21:30:00Z");
    time.unwrap().timestamp()
}

/// A person in the upper left corner who is hardly seen, and a dog in the middle.
fn seen() -> Vec<pb::Detection> {
    let boxed = |name: &str, sure, edge| pb::Detection {
        bbox_x: Some(edge),
        bbox_y: Some(edge),
        bbox_width: Some(10),
        bbox_height: Some(10),
        video_width: Some(100),
        video_height: Some(100),
        ..detection(name, sure)
    };
    vec![boxed("Person", 0.4, 0), boxed("dog", 0.9, 45), detection("cat", 0.5)]
}

/// An event of Friday with a score and detections.
fn request(request_id: &str) -> pb::IngestEventRequest {
    let event =
        pb::Event { camera_id: "door".into(), risk_score: Some(60), started_at: at(friday()), ..Default::default() };
    pb::IngestEventRequest {
        event: Some(event),
        detections: seen(),
        request_id: request_id.into(),
        ..Default::default()
    }
}

async fn send(server: &TestServer, request: pb::IngestEventRequest) -> pb::IngestEventResponse {
    let response = server.events().ingest_event(request).await;
    response.unwrap().into_inner()
}

async fn explain(server: &TestServer, request: pb::ExplainEventRequest) -> Reply<pb::ExplainEventResponse> {
    server.rules().explain_event(request).await
}

/// What all rules say of an event.
async fn all(server: &TestServer, event_id: i64) -> pb::ExplainEventResponse {
    let request = pb::ExplainEventRequest { event_id, ..Default::default() };
    explain(server, request).await.unwrap().into_inner()
}

async fn ready(backend: Backend) -> TestServer {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.zone(middle("door", "mid")).await;
    server
}

#[on_both]
async fn every_condition_is_told_whether_it_is_met_or_not(backend: Backend) {
    let server = ready(backend).await;
    let night = pb::Schedule {
        days: vec![pb::DayOfWeek::Friday.into(), pb::DayOfWeek::Monday.into()],
        start_time: "22:00".into(),
        end_time: "06:00".into(),
        time_zone: "Europe/Berlin".into(),
    };
    let everything = |types: &[&str]| pb::AlertRule {
        camera_ids: strings(&["gate", "door"]),
        risk_threshold: Some(61),
        schedule: Some(night.clone()),
        object_types: strings(types),
        min_confidence: Some(0.5),
        zone_ids: strings(&["mid"]),
        ..always("everything")
    };
    let off = pb::AlertRule { enabled: Some(false), camera_ids: strings(&["gate"]), ..always("off") };
    let dogs = pb::AlertRule { risk_threshold: Some(60), ..everything(&["Dog", "bird"]) };
    for rule in [everything(&["PERSON"]), dogs, off, always("always")] {
        server.rule(rule).await;
    }
    let stored = send(&server, request("")).await;
    let ids: Vec<_> = stored.detections.iter().map(|detection| detection.id).collect();
    let told = all(&server, stored.event.unwrap().id).await;
    let condition = |stop: RuleStop, expected: &str, actual: &str, met, detection_id| pb::ConditionExplanation {
        condition: stop.into(),
        expected: expected.into(),
        actual: actual.into(),
        met,
        detection_id,
    };
    let (berlin, then) = ("Monday, Friday 22:00 to 06:00 Europe/Berlin", "Friday 2026-11-20T22:30:00+01:00");
    let camera = || condition(CameraIds, "camera_id in [gate, door]", "camera_id door", true, None);
    let (person, dog) = (Some(ids[0]), Some(ids[1]));
    let first = &told.explanations[0];
    assert_eq!((first.matched, first.stopped_by(), &*first.detail), (false, RiskThreshold, "risk_score 60 < 61"));
    assert_eq!(
        first.conditions,
        [
            camera(),
            condition(RiskThreshold, "risk_score >= 61", "risk_score 60", false, None),
            condition(Schedule, berlin, then, true, None),
            condition(ObjectTypes, "object_type in [PERSON]", "object_type person", true, person),
            condition(MinConfidence, "confidence >= 0.5", "confidence 0.4", false, person),
            condition(ZoneIds, "zone_id in [mid]", "in no enabled zone of the camera", false, person),
        ]
    );
    let second = &told.explanations[1];
    assert_eq!((second.matched, second.stopped_by(), second.enabled), (true, Unspecified, true));
    assert_eq!(
        second.conditions,
        [
            camera(),
            condition(RiskThreshold, "risk_score >= 60", "risk_score 60", true, None),
            condition(Schedule, berlin, then, true, None),
            condition(ObjectTypes, "object_type in [Dog, bird]", "object_type dog", true, dog),
            condition(MinConfidence, "confidence >= 0.5", "confidence 0.9", true, dog),
            condition(ZoneIds, "zone_id in [mid]", "in [mid]", true, dog),
        ]
    );
    let third = &told.explanations[2];
    assert_eq!((third.enabled, third.stopped_by(), third.conditions.len()), (false, CameraIds, 1));
    let fourth = &told.explanations[3];
    assert_eq!((&*fourth.rule_name, fourth.matched, fourth.conditions.len()), ("always", true, 0));

    // Without detections there is none to tell of.
    let empty = pb::IngestEventRequest { detections: vec![], ..request("") };
    let told = all(&server, send(&server, empty).await.event.unwrap().id).await;
    let zone = told.explanations[1].conditions.last().unwrap();
    assert_eq!((&*zone.actual, zone.met, zone.detection_id), ("no detection", false, None));
    server.stop().await;
}

#[on_both]
async fn what_the_rules_did_at_the_ingest_is_told(backend: Backend) {
    let server = ready(backend).await;
    let once = pb::AlertRule { cooldown: seconds(3600), ..always("once") };
    let once = server.rule(once).await;
    let dogs = server.rule(pb::AlertRule { object_types: strings(&["dog"]), ..always("dogs") }).await;
    let birds = server.rule(pb::AlertRule { object_types: strings(&["bird"]), ..always("birds") }).await;
    let first = send(&server, request("a")).await;
    let second = send(&server, request("b")).await;
    let keyless = send(&server, request("")).await;
    let mut snoozed = request("c");
    snoozed.event.as_mut().unwrap().snooze_until = at(253_402_300_799);
    let snoozed = send(&server, snoozed).await;
    // Judged by the rules as they are now, whatever was then.
    for rule in [
        pb::AlertRule { id: dogs.id.clone(), object_types: strings(&["bird"]), ..Default::default() },
        pb::AlertRule { id: birds.id.clone(), object_types: strings(&["dog"]), ..Default::default() },
    ] {
        update(&server, rule, &[]).await.unwrap();
    }
    let told = async |stored: &pb::IngestEventResponse| {
        let told = all(&server, stored.event.as_ref().unwrap().id).await;
        let matched: Vec<_> = told.explanations.iter().map(|told| told.matched).collect();
        assert_eq!(matched, [true, false, true]);
        told
    };
    let alert_id = |stored: &pb::IngestEventResponse, rule: &pb::AlertRule| {
        let alert = stored.alerts.iter().find(|alert| alert.rule_id.as_ref() == Some(&rule.id));
        alert.map(|alert| alert.id.clone())
    };
    let standing = alert_id(&first, &once);
    for (stored, stops) in [
        (&first, [None, None, None]),
        (&second, [Some(Cooldown), None, None]),
        (&snoozed, [Some(Snoozed), Some(Snoozed), None]),
        (&keyless, [Some(Cooldown), None, None]),
    ] {
        let told = told(stored).await;
        let held = told.explanations.iter().map(|told| told.suppression.as_ref());
        let held: Vec<_> = held.map(|held| held.map(pb::AlertSuppression::reason)).collect();
        assert_eq!(held, stops);
        for (told, rule) in told.explanations.iter().zip([&once, &dogs, &birds]) {
            assert_eq!((&told.rule_id, &told.alert_id), (&rule.id, &alert_id(stored, rule)));
        }
        if stops[0] == Some(Cooldown) {
            assert_eq!(told.explanations[0].suppression.as_ref().unwrap().alert_id, standing);
        }
    }
    // A zone that was made since counts as well.
    let rule = pb::AlertRule { zone_ids: strings(&["mid"]), ..always("zone") };
    let id = server.rule(rule).await.id;
    let request = pb::ExplainEventRequest {
        event_id: first.event.as_ref().unwrap().id,
        rule_ids: vec![id],
        ..Default::default()
    };
    let told = explain(&server, request).await.unwrap().into_inner();
    assert_eq!(told.explanations.len(), 1);
    assert!(told.explanations[0].matched && told.explanations[0].suppression.is_none());
    server.stop().await;
}

#[on_both]
async fn rules_are_explained_oldest_first_page_by_page(backend: Backend) {
    let server = ready(backend).await;
    let mut ids = Vec::new();
    for n in 0..7 {
        let rule = pb::AlertRule { enabled: Some(n % 2 == 0), ..always(&format!("r{n}")) };
        ids.push(server.rule(rule).await.id);
    }
    // All of the same time.
    crate::support::calls::execute(
        &server,
        "UPDATE alert_rules SET created_at = (SELECT min(created_at) FROM alert_rules)",
    )
    .await;
    let stored = send(&server, request("")).await;
    let event_id = stored.event.unwrap().id;
    let pages = async |page_size, rule_ids: &[String]| {
        let (mut told, mut page_token) = (Vec::new(), String::new());
        loop {
            let rule_ids = rule_ids.to_vec();
            let request = pb::ExplainEventRequest { event_id, rule_ids, page_size, page_token };
            let page = explain(&server, request).await.unwrap().into_inner();
            told.extend(page.explanations.into_iter().map(|told| told.rule_id));
            assert!(told.len() <= ids.len(), "{told:?}");
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return told;
            }
        }
    };
    for size in [1, 2, 3, 7, 0] {
        assert_eq!(pages(size, &[]).await, ids, "{size}");
    }
    let some = [ids[5].clone(), ids[1].clone(), "01890a5d-ac96-774b-bcce-b302099a8057".into()];
    assert_eq!(pages(1, &some).await, [ids[1].clone(), ids[5].clone()]);

    let request = pb::ExplainEventRequest { event_id, page_size: 2, ..Default::default() };
    let page_token = explain(&server, request.clone()).await.unwrap().into_inner().next_page_token;
    for wrong in [
        pb::ExplainEventRequest { event_id: event_id + 1, ..request.clone() },
        pb::ExplainEventRequest { rule_ids: ids.clone(), ..request.clone() },
    ] {
        let wrong = pb::ExplainEventRequest { page_token: page_token.clone(), ..wrong };
        refused(explain(&server, wrong).await, "page_token");
    }
    // A rule that goes between two pages takes nothing with it.
    delete(&server, &ids[1]).await.unwrap();
    let rest = explain(&server, pb::ExplainEventRequest { page_token, page_size: 100, ..request }).await;
    let rest: Vec<_> = rest.unwrap().into_inner().explanations.into_iter().map(|told| told.rule_id).collect();
    assert_eq!(rest, ids[2..]);
    server.stop().await;
}

#[on_both]
async fn an_event_that_is_not_there_is_not_explained(backend: Backend) {
    let server = ready(backend).await;
    let id = send(&server, ingest("door", vec![])).await.event.unwrap().id;
    let asked = |event_id| pb::ExplainEventRequest { event_id, ..Default::default() };
    refused(explain(&server, asked(0)).await, "event_id");
    let rule_ids = strings(&["01890a5d-ac96-774b-bcce-b302099a8057", "x"]);
    refused(explain(&server, pb::ExplainEventRequest { rule_ids, ..asked(id) }).await, "rule_ids[1]");
    refused(explain(&server, pb::ExplainEventRequest { page_size: -1, ..asked(id) }).await, "page_size");
    let many = vec!["01890a5d-ac96-774b-bcce-b302099a8057".to_string(); 1_001];
    refused(explain(&server, pb::ExplainEventRequest { rule_ids: many, ..asked(id) }).await, "rule_ids");
    failed(explain(&server, asked(id + 1)).await, Code::NotFound, "NOT_FOUND");
    explain(&server, asked(id)).await.unwrap();
    server.events().delete_event(pb::DeleteEventRequest { id }).await.unwrap();
    failed(explain(&server, asked(id)).await, Code::NotFound, "NOT_FOUND");
    server.stop().await;
}

#[on_both]
async fn a_rule_that_cannot_be_used_says_so(backend: Backend) {
    let server = ready(backend).await;
    server.rule(always("foreign")).await;
    crate::support::calls::execute(&server, "UPDATE alert_rules SET dedup_key_template = '{nope}'").await;
    let id = send(&server, ingest("door", vec![])).await.event.unwrap().id;
    let told = all(&server, id).await.explanations.remove(0);
    assert_eq!((told.matched, told.stopped_by(), told.conditions.len()), (false, Unspecified, 0));
    assert_eq!(told.detail, "the rule cannot be used: `dedup_key_template` has an unknown variable `{nope}`");
    server.stop().await;
}
