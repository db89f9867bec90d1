//! Dedup keys, and what an alert says of its rule.

use serde_json::json;
use watchpost::pb;

use super::{create, delete, event};
use crate::support::{
    TestServer, always,
    calls::{object, seconds, strings},
    database::{Backend, on_both},
    detection,
};

#[on_both]
async fn a_template_is_filled_with_the_event(backend: Backend) {
    let server = TestServer::start(backend).await;
    let camera = "Door-1_".to_string() + &"x".repeat(57);
    server.camera(&camera).await;
    let untyped = |sure| pb::Detection { confidence: Some(sure), ..Default::default() };
    let (dog, cat) = (|sure| detection("Dog", sure), |sure| detection("cat 🐈", sure));
    let of = |types: &[&str]| pb::AlertRule { object_types: strings(types), ..always("r") };
    let sure = |least| pb::AlertRule { min_confidence: Some(least), ..always("r") };
    for (rule, template, detections, expected) in [
        (always("r"), "fixed", vec![], "fixed"),
        (always("r"), "{camera_id}", vec![], camera.as_str()),
        (always("r"), "a-{zone_id}_{object_type}:B", vec![], "a-none_unknown:B"),
        (always("r"), "{object_type}", vec![untyped(0.5)], "unknown"),
        (always("r"), "{object_type}", vec![untyped(0.5), dog(0.1), cat(0.2)], "dog"),
        (of(&["CAT 🐈"]), "{object_type}", vec![dog(0.9), cat(0.1)], "cat__"),
        // The detection that matched, not another one.
        (sure(0.5), "{object_type}", vec![dog(0.1), cat(0.5)], "cat__"),
        (sure(0.5), "{object_type}", vec![untyped(0.5), dog(0.1)], "unknown"),
        (sure(0.5), "{object_type}", vec![dog(0.1), untyped(0.5), cat(0.6)], "cat__"),
        (
            pb::AlertRule { min_confidence: Some(0.5), ..of(&["dog", "cat 🐈"]) },
            "{object_type}{object_type}",
            vec![cat(0.1), dog(0.8)],
            "dogdog",
        ),
    ] {
        let rule = pb::AlertRule { dedup_key_template: Some(template.into()), ..rule };
        let id = server.rule(rule.clone()).await.id;
        let alerts = server.ingest(&camera, detections.clone()).await.alerts;
        assert_eq!(alerts[0].dedup_key, expected, "{rule:?} {detections:?}");
        delete(&server, &id).await.unwrap();
    }
    let rule = pb::AlertRule { dedup_key_template: Some("{event_id}:{rule_id}".into()), ..always("r") };
    let id = server.rule(rule).await.id;
    let response = server.ingest(&camera, vec![]).await;
    assert_eq!(response.alerts[0].dedup_key, format!("{}:{id}", response.event.unwrap().id));
    server.stop().await;
}

#[on_both]
async fn a_key_at_its_longest_fits(backend: Backend) {
    let server = TestServer::start(backend).await;
    let camera = "c".repeat(64);
    server.camera(&camera).await;
    // 64 + 64 + 64 + 36 + 19 + 8.
    let template = "{camera_id}{object_type}{zone_id}{rule_id}{event_id}12345678";
    let longest = pb::AlertRule { dedup_key_template: Some(template.into()), cooldown: seconds(9), ..always("r") };
    server.rule(longest.clone()).await;
    let too_long = pb::AlertRule { dedup_key_template: Some(format!("{template}9")), ..longest };
    crate::support::calls::refused(create(&server, too_long).await, "alert_rule.dedup_key_template");
    let types = ["é".repeat(255), "é".repeat(254) + "e", "é".repeat(254)];
    let mut keys = Vec::new();
    for name in &types {
        let alert = server.ingest(&camera, vec![detection(name, 1.0)]).await.alerts.remove(0);
        assert!(alert.dedup_key.is_ascii() && alert.dedup_key.len() <= 255);
        let value = alert.dedup_key[64..128].to_string();
        assert!(!keys.contains(&value), "values that differ at their end stay apart");
        keys.push(value);
    }
    server.stop().await;
}

#[on_both]
async fn an_alert_says_what_its_rule_asked_for(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.streams(["mail", "sms"]).await;
    let rule = pb::AlertRule {
        risk_threshold: Some(70),
        camera_ids: strings(&["door", "gate"]),
        object_types: strings(&["Person"]),
        min_confidence: Some(0.8),
        schedule: Some(pb::Schedule::default()),
        severity: pb::Severity::Critical.into(),
        channels: strings(&["mail", "sms"]),
        ..always("night \"watch\"")
    };
    let rule = server.rule(rule).await;
    server.rule(always("all")).await;
    let request = pb::IngestEventRequest {
        event: Some(pb::Event { risk_score: Some(70), ..event() }),
        detections: vec![detection("person", 0.8)],
        ..Default::default()
    };
    let response = server.events().ingest_event(request).await.unwrap().into_inner();
    let event = response.event.unwrap();
    let alert = &response.alerts[0];
    let expected = pb::Alert {
        id: alert.id.clone(),
        event_id: event.id,
        rule_id: Some(rule.id.clone()),
        severity: rule.severity,
        status: pb::AlertStatus::Pending.into(),
        created_at: alert.created_at,
        updated_at: alert.created_at,
        delivered_at: None,
        channels: rule.channels,
        dedup_key: format!("door:{}", rule.id),
        metadata: object(&json!({
            "rule_name": "night \"watch\"",
            "matched_conditions": ["risk_score >= 70", "camera_id in [door, gate]", "object_type in [Person]", "confidence >= 0.8", "within_schedule"],
        })),
        version_id: 1,
        camera_id: Some("door".into()),
        ..Default::default()
    };
    assert_eq!(alert, &expected);
    assert!(alert.created_at.is_some());
    let all = object(&json!({"rule_name": "all", "matched_conditions": ["no_conditions (always matches)"]}));
    assert_eq!(response.alerts[1].metadata, all);
    server.stop().await;
}
