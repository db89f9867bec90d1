//! Alerts that are raised by hand.

use serde_json::json;
use tonic::Code;
use watchpost::pb::{self, AlertChangeKind, Severity, Topic};

use super::{Dismissed, NONE, Pending, advance, get, list, ready, transitions};
use crate::support::{
    TestServer, always,
    calls::{Reply, execute, failed, nanos, object, refused, rows, seconds, strings},
    database::{Backend, on_both},
    field, topics,
};

async fn create(server: &TestServer, request: pb::CreateAlertRequest) -> Reply<pb::CreateAlertResponse> {
    server.alerts().create_alert(request).await
}

/// Creates an alert, and tells whether it was raised.
pub async fn created(server: &TestServer, request: pb::CreateAlertRequest) -> (pb::Alert, bool) {
    let response = create(server, request).await.unwrap().into_inner();
    (response.alert.unwrap(), response.created)
}

pub fn request(event_id: i64, dedup_key: &str) -> pb::CreateAlertRequest {
    raise(alert(event_id, dedup_key))
}

pub fn alert(event_id: i64, dedup_key: &str) -> pb::Alert {
    pb::Alert { event_id, dedup_key: dedup_key.into(), ..Default::default() }
}

pub fn raise(alert: pb::Alert) -> pb::CreateAlertRequest {
    pb::CreateAlertRequest { alert: Some(alert), ..Default::default() }
}

/// An event of the camera `door`.
async fn event(server: &TestServer) -> i64 {
    server.ingest("door", vec![]).await.event.unwrap().id
}

#[on_both]
async fn an_alert_is_raised_by_hand_and_announced(backend: Backend) {
    let server = ready(backend).await;
    server.streams(["mail", "sms"]).await;
    let event_id = event(&server).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let metadata = object(&json!({"note": "seen by the guard", "photo": {"of": ["gate", 3]}}));
    let output_only = pb::Alert {
        id: NONE.into(),
        status: Dismissed.into(),
        version_id: 9,
        camera_id: Some("yard".into()),
        suppressed_count: 9,
        dismissed_by: Some("bob".into()),
        ..Default::default()
    };
    let wanted = pb::CreateAlertRequest {
        alert: Some(pb::Alert {
            event_id,
            dedup_key: "guard:Gate_1-a".into(),
            severity: Severity::Critical.into(),
            channels: strings(&["mail", "sms"]),
            metadata: metadata.clone(),
            ..output_only
        }),
        actor: "ann".into(),
        reason: "a stranger".into(),
        ..Default::default()
    };
    let (alert, is_new) = created(&server, wanted).await;
    let expected = pb::Alert {
        id: alert.id.clone(),
        event_id,
        severity: Severity::Critical.into(),
        status: Pending.into(),
        created_at: alert.created_at,
        updated_at: alert.created_at,
        channels: strings(&["mail", "sms"]),
        dedup_key: "guard:Gate_1-a".into(),
        metadata,
        version_id: 1,
        camera_id: Some("door".into()),
        ..Default::default()
    };
    assert_eq!((&alert, is_new), (&expected, true));
    assert_eq!(get(&server, &alert.id).await.unwrap().into_inner(), alert);
    assert_eq!(watch.alert().await, (AlertChangeKind::Created, alert.clone()));
    let kept = transitions::of(&server, &alert.id).await;
    let told = (kept[0].from_status, kept[0].to_status(), kept[0].actor.as_str(), kept[0].reason.as_deref());
    assert_eq!((kept.len(), told), (1, (None, Pending, "ann", Some("a stranger"))));

    let (plain, _) = created(&server, request(event_id, "plain")).await;
    assert_eq!((plain.severity(), plain.channels.len(), plain.metadata), (Severity::Medium, 0, None));
    assert_eq!(transitions::of(&server, &plain.id).await[0].actor, "ip:127.0.0.1");
    server.stop().await;
}

#[on_both]
async fn a_repeat_is_answered_with_the_alert_that_stands_and_counted_on_it(backend: Backend) {
    let server = ready(backend).await;
    let event_id = event(&server).await;
    let (first, _) = created(&server, request(event_id, "key")).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let (second, is_new) = created(&server, request(event_id, "key")).await;
    let last_suppressed_at = second.last_suppressed_at;
    assert!(last_suppressed_at.is_some());
    assert_eq!((second, is_new), (pb::Alert { suppressed_count: 1, last_suppressed_at, ..first.clone() }, false));
    // It stands whatever its status, for 300 seconds.
    let dismissed = advance(&server, &first.id, Dismissed, Some(1)).await.unwrap().into_inner();
    assert_eq!(watch.alert().await.1, dismissed);
    let back = |seconds| format!("UPDATE manual_alert_cooldowns SET raised_at_us = raised_at_us - {seconds}000000");
    execute(&server, &back(290)).await;
    let (third, is_new) = created(&server, request(event_id, "key")).await;
    assert_eq!((&third.id, third.status(), third.suppressed_count, is_new), (&first.id, Dismissed, 2, false));
    let longer = pb::CreateAlertRequest { cooldown: seconds(3_600), ..request(event_id, "key") };
    execute(&server, &back(11)).await;
    assert!(!created(&server, longer).await.1);
    let (fourth, is_new) = created(&server, request(event_id, "key")).await;
    assert_eq!((fourth.suppressed_count, is_new), (0, true));
    // Without a cooldown it is raised in any case; another key is another alert.
    let any = pb::CreateAlertRequest { cooldown: seconds(0), ..request(event_id, "key") };
    assert!(created(&server, any).await.1);
    assert!(created(&server, request(event_id, "KEY")).await.1);
    server.stop().await;
}

#[on_both]
async fn of_many_who_raise_one_alert_one_succeeds(backend: Backend) {
    let server = ready(backend).await;
    let event_id = event(&server).await;
    let tries: Vec<_> = (0..40)
        .map(|_| {
            let mut alerts = server.alerts();
            tokio::spawn(async move { alerts.create_alert(request(event_id, "key")).await })
        })
        .collect();
    let (mut raised, mut ids) = (0, Vec::new());
    for tried in tries {
        let response = tried.await.unwrap().unwrap().into_inner();
        raised += usize::from(response.created);
        ids.push(response.alert.unwrap().id);
    }
    assert_eq!(raised, 1);
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(get(&server, &ids[0]).await.unwrap().into_inner().suppressed_count, 39);
    server.stop().await;
}

#[on_both]
async fn an_alert_in_the_name_of_a_rule_shares_its_keys_and_defaults(backend: Backend) {
    let server = ready(backend).await;
    server.streams(["mail", "sms"]).await;
    let rule = pb::AlertRule {
        object_types: strings(&["dog"]),
        severity: Severity::High.into(),
        channels: strings(&["mail"]),
        dedup_key_template: Some("{camera_id}".into()),
        cooldown: seconds(3_600),
        ..always("dogs")
    };
    let rule = server.rule(rule).await;
    let of_rule = |event_id| pb::Alert { rule_id: Some(rule.id.clone()), ..alert(event_id, "door") };
    let event_id = event(&server).await;
    let (first, is_new) = created(&server, raise(of_rule(event_id))).await;
    assert!(is_new);
    assert_eq!((first.rule_id.as_ref(), first.severity()), (Some(&rule.id), Severity::High));
    assert_eq!(first.channels, ["mail"]);
    // The rule itself is held back by it, but not an alert without the rule.
    let response = server.ingest("door", vec![crate::support::detection("dog", 1.0)]).await;
    let outcome = &response.rule_outcomes[1];
    assert_eq!((outcome.stopped_by(), outcome.alert_id.as_ref()), (pb::RuleStop::Cooldown, Some(&first.id)));
    assert!(created(&server, request(event_id, "door")).await.1);
    let (again, is_new) = created(&server, raise(of_rule(event_id))).await;
    assert_eq!((again.id, again.suppressed_count, is_new), (first.id, 2, false));
    let own = pb::Alert { severity: Severity::Low.into(), channels: strings(&["sms"]), ..of_rule(event_id) };
    let own = pb::CreateAlertRequest { cooldown: seconds(0), ..raise(own) };
    let (own, is_new) = created(&server, own).await;
    assert_eq!((own.severity(), own.channels, is_new), (Severity::Low, strings(&["sms"]), true));
    server.stop().await;
}

#[on_both]
async fn a_repeated_request_raises_and_counts_nothing(backend: Backend) {
    let server = ready(backend).await;
    let event_id = event(&server).await;
    let same = |id: &str, cooldown| pb::CreateAlertRequest {
        request_id: id.into(),
        cooldown: seconds(cooldown),
        ..request(event_id, "key")
    };
    let tries: Vec<_> = (0..16)
        .map(|n| {
            let mut alerts = server.alerts();
            let request = same(["a", "b"][n % 2], 0);
            tokio::spawn(async move { alerts.create_alert(request).await })
        })
        .collect();
    let mut answers = Vec::new();
    for tried in tries {
        answers.push(tried.await.unwrap().unwrap().into_inner());
    }
    assert!(answers.iter().all(|answer| answer.created));
    assert!(answers.iter().step_by(2).all(|answer| answer == &answers[0]));
    assert_ne!(answers[0], answers[1]);
    // One raises an alert with a cooldown; one is counted on it, once.
    let (first, _) = created(&server, same("c", 300)).await;
    for _ in 0..2 {
        let (counted, is_new) = created(&server, same("d", 300)).await;
        assert_eq!((&counted.id, counted.suppressed_count, is_new), (&first.id, 1, false));
    }
    assert!(created(&server, same("c", 300)).await.1);
    failed(create(&server, same("c", 301)).await, Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED");
    server.stop().await;
}

#[on_both]
async fn a_repeated_ingest_tells_of_its_own_alerts_only(backend: Backend) {
    let server = ready(backend).await;
    let ingest = pb::IngestEventRequest { request_id: "r".into(), ..crate::support::ingest("door", vec![]) };
    let ingest = async || server.events().ingest_event(ingest.clone()).await.unwrap().into_inner();
    let first = ingest().await;
    assert_eq!(first.alerts.len(), 1);
    created(&server, request(first.event.unwrap().id, "by-hand")).await;
    assert_eq!(ingest().await.alerts, first.alerts);
    server.stop().await;
}

#[on_both]
async fn an_alert_that_is_gone_stands_for_nothing(backend: Backend) {
    let server = ready(backend).await;
    let (old, event_id) = (event(&server).await, event(&server).await);
    for rule_id in [None, list(&server, pb::AlertFilter::default()).await[0].rule_id.clone()] {
        let of = |event_id| pb::CreateAlertRequest {
            cooldown: seconds(300),
            ..raise(pb::Alert { rule_id: rule_id.clone(), ..alert(event_id, "key") })
        };
        assert!(created(&server, of(old)).await.1);
        execute(&server, "DELETE FROM alerts WHERE dedup_key = 'key'").await;
        let (alert, is_new) = created(&server, of(event_id)).await;
        assert!(is_new);
        let (again, is_new) = created(&server, of(event_id)).await;
        assert_eq!((again.id, again.suppressed_count, is_new), (alert.id, 1, false));
    }
    server.stop().await;
}

#[on_both]
async fn bad_alerts_are_refused_and_leave_no_trace(backend: Backend) {
    let server = ready(backend).await;
    let event_id = event(&server).await;
    let gone = event(&server).await;
    server.events().delete_event(pb::DeleteEventRequest { id: gone }).await.unwrap();
    let before = rows(&server).await;
    let good = || alert(event_id, "key");
    let huge = object(&json!({"text": "x".repeat(65_536)}));
    for (request, path) in [
        (pb::CreateAlertRequest::default(), "alert"),
        (request(0, "key"), "alert.event_id"),
        (request(event_id, ""), "alert.dedup_key"),
        (request(event_id, "a b"), "alert.dedup_key"),
        (request(event_id, "{camera_id}"), "alert.dedup_key"),
        (request(event_id, "ä"), "alert.dedup_key"),
        (request(event_id, &"k".repeat(256)), "alert.dedup_key"),
        (raise(pb::Alert { severity: 5, ..good() }), "alert.severity"),
        (pb::CreateAlertRequest { cooldown: seconds(-1), ..raise(good()) }, "cooldown"),
        (pb::CreateAlertRequest { cooldown: seconds(31_536_001), ..raise(good()) }, "cooldown"),
        (pb::CreateAlertRequest { cooldown: nanos(1), ..raise(good()) }, "cooldown"),
        (raise(pb::Alert { channels: vec!["c".into(); 101], ..good() }), "alert.channels"),
        (raise(pb::Alert { channels: strings(&["a", ""]), ..good() }), "alert.channels[1]"),
        (raise(pb::Alert { metadata: huge, ..good() }), "alert.metadata"),
        (raise(pb::Alert { metadata: object(&json!({"a": ["\0"]})), ..good() }), "alert.metadata.a[0]"),
        (raise(pb::Alert { rule_id: Some("1".into()), ..good() }), "alert.rule_id"),
        (pb::CreateAlertRequest { actor: "a".repeat(101), ..raise(good()) }, "actor"),
        (pb::CreateAlertRequest { reason: "a".repeat(1_001), ..raise(good()) }, "reason"),
        (pb::CreateAlertRequest { request_id: "a".repeat(129), ..raise(good()) }, "request_id"),
    ] {
        refused(create(&server, request).await, path);
    }
    for (request, path) in [
        (request(i64::MAX, "key"), "alert.event_id"),
        (request(gone, "key"), "alert.event_id"),
        (raise(pb::Alert { rule_id: Some(NONE.into()), ..good() }), "alert.rule_id"),
    ] {
        let status = failed(create(&server, request).await, Code::FailedPrecondition, "BROKEN_REFERENCE");
        assert_eq!(field(&status), path);
    }
    assert_eq!(rows(&server).await, before);
    server.stop().await;
}
