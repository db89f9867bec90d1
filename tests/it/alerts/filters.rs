//! Filters of alerts by what became of them and by what they hold.

use serde_json::json;
use watchpost::pb;

use super::{
    Acknowledged, Dismissed, advance, delivery, list,
    manual::{alert, created, raise, request},
};
use crate::support::{
    TestServer, always,
    calls::{execute, object, refused, strings},
    database::{Backend, on_both},
    detection, middle,
};

fn any() -> pb::AlertFilter {
    pb::AlertFilter::default()
}

/// That these filters find the alerts at these places, newest first.
async fn finds(server: &TestServer, alerts: &[pb::Alert], cases: Vec<(pb::AlertFilter, &[usize])>) {
    for (filter, expected) in cases {
        let found = list(server, filter.clone()).await.into_iter();
        let found: Vec<_> = found.map(|alert| alert.id).collect();
        let expected: Vec<_> = expected.iter().map(|at| alerts[*at].id.clone()).collect();
        assert_eq!(found, expected, "{filter:?}");
    }
}

#[on_both]
async fn alerts_are_found_by_what_became_of_them(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let event_id = server.ingest("door", vec![]).await.event.unwrap().id;
    let mut alerts = Vec::new();
    for key in ["a", "b", "c", "d"] {
        alerts.push(created(&server, request(event_id, key)).await.0);
    }
    created(&server, request(event_id, "b")).await;
    let db = delivery::beside(&server).await;
    let ids: Vec<_> = alerts[..2].iter().map(|alert| alert.id.parse().unwrap()).collect();
    let delivered = delivery::deliver(&db, &ids).await;
    db.close().await;
    let acknowledged = advance(&server, &alerts[0].id, Acknowledged, None).await.unwrap().into_inner();
    let dismissed = advance(&server, &alerts[2].id, Dismissed, None).await.unwrap().into_inner();
    let range = |start, end| Some(pb::TimeRange { start, end });
    finds(
        &server,
        &alerts,
        vec![
            (pb::AlertFilter { updated_at: range(dismissed.updated_at, None), ..any() }, &[2]),
            (pb::AlertFilter { updated_at: range(acknowledged.updated_at, None), ..any() }, &[2, 0]),
            (pb::AlertFilter { updated_at: range(None, acknowledged.updated_at), ..any() }, &[3, 1]),
            (pb::AlertFilter { updated_at: range(None, alerts[0].updated_at), ..any() }, &[]),
            (pb::AlertFilter { delivered_at: range(delivered[0].delivered_at, None), ..any() }, &[1, 0]),
            (pb::AlertFilter { delivered_at: range(None, delivered[0].delivered_at), ..any() }, &[]),
            (pb::AlertFilter { delivered_at: range(None, dismissed.updated_at), ..any() }, &[1, 0]),
            (pb::AlertFilter { delivered_at: range(None, None), ..any() }, &[3, 2, 1, 0]),
            (pb::AlertFilter { open: Some(true), ..any() }, &[3, 1]),
            (pb::AlertFilter { open: Some(false), ..any() }, &[2, 0]),
            (pb::AlertFilter { open: Some(true), statuses: vec![Dismissed.into()], ..any() }, &[]),
            (pb::AlertFilter { suppressed: Some(true), ..any() }, &[1]),
            (pb::AlertFilter { suppressed: Some(false), ..any() }, &[3, 2, 0]),
        ],
    )
    .await;
    server.stop().await;
}

#[on_both]
async fn alerts_are_found_by_what_they_hold(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.streams(["mail", "sms", "mail, sms"]).await;
    let event_id = server.ingest("door", vec![]).await.event.unwrap().id;
    let of = |key: &str, metadata: serde_json::Value, channels: &[&str]| {
        raise(pb::Alert { metadata: object(&metadata), channels: strings(channels), ..alert(event_id, key) })
    };
    let mut alerts = Vec::new();
    for wanted in [
        of("Fox:1", json!({"rule_name": "100% \"Äther\"", "zone_id": "yard", "number": 42}), &["mail"]),
        of("dog:2", json!({"deep": [{"er": ["a\\b_c", "Zaun"]}], "zone_id": 7}), &["sms", "mail, sms"]),
        request(event_id, "plain"),
    ] {
        alerts.push(created(&server, wanted).await.0);
    }
    // What other writers may leave.
    execute(&server, "UPDATE alerts SET metadata = 'null' WHERE dedup_key = 'plain'").await;
    let text = |text: &str| pb::AlertFilter { text: text.into(), ..any() };
    let zones = |ids: &[&str]| pb::AlertFilter { zone_ids: strings(ids), ..any() };
    let channels = |names: &[&str]| pb::AlertFilter { channels: strings(names), ..any() };
    finds(
        &server,
        &alerts,
        vec![
            (text("fOX:"), &[0]),
            (text("o"), &[1, 0]),
            (text("zaun"), &[1]),
            (text("%"), &[0]),
            (text("_"), &[1]),
            (text("A\\B"), &[1]),
            (text("\"Äther"), &[0]),
            // The case of A to Z only.
            (text("äther"), &[]),
            // Neither the names of fields nor numbers.
            (text("rule_name"), &[]),
            (text("42"), &[]),
            (text("PLAIN"), &[2]),
            (text("'"), &[]),
            (zones(&["yard"]), &[0]),
            (zones(&["none", "yard"]), &[0]),
            (zones(&["Yard"]), &[]),
            (channels(&["mail"]), &[0]),
            (channels(&["sms"]), &[1]),
            (channels(&["none", "sms", "mail"]), &[1, 0]),
            (channels(&["mail, sms"]), &[1]),
            (channels(&["MAIL"]), &[]),
            (pb::AlertFilter { zone_ids: strings(&["yard"]), text: "fox".into(), ..channels(&["mail"]) }, &[0]),
            (pb::AlertFilter { zone_ids: strings(&["yard"]), text: "dog".into(), ..channels(&["mail"]) }, &[]),
        ],
    )
    .await;
    server.stop().await;
}

#[on_both]
async fn alerts_of_rules_are_found_by_their_zone(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.zone(middle("door", "porch")).await;
    server.rule(pb::AlertRule { zone_ids: strings(&["porch"]), ..always("in the zone") }).await;
    server.rule(always("anywhere")).await;
    let seen = pb::Detection {
        bbox_x: Some(490),
        bbox_y: Some(490),
        bbox_width: Some(20),
        bbox_height: Some(20),
        video_width: Some(1_000),
        video_height: Some(1_000),
        ..detection("dog", 1.0)
    };
    let alerts = server.ingest("door", vec![seen]).await.alerts;
    assert_eq!(alerts.len(), 2);
    finds(
        &server,
        &alerts,
        vec![
            (pb::AlertFilter { zone_ids: strings(&["porch"]), ..any() }, &[0]),
            (pb::AlertFilter { zone_ids: strings(&["yard"]), ..any() }, &[]),
        ],
    )
    .await;
    server.stop().await;
}

#[on_both]
async fn bad_filters_are_refused_by_path(backend: Backend) {
    let server = TestServer::start(backend).await;
    let backwards = Some(pb::TimeRange { start: crate::support::calls::at(2), end: crate::support::calls::at(1) });
    for (filter, path) in [
        (pb::AlertFilter { updated_at: backwards, ..any() }, "filter.updated_at.end"),
        (pb::AlertFilter { delivered_at: backwards, ..any() }, "filter.delivered_at.end"),
        (pb::AlertFilter { text: "a".repeat(256), ..any() }, "filter.text"),
        (pb::AlertFilter { text: "\0".into(), ..any() }, "filter.text"),
        (pb::AlertFilter { zone_ids: vec!["z".into(); 1_001], ..any() }, "filter.zone_ids"),
        (pb::AlertFilter { zone_ids: strings(&["a", ""]), ..any() }, "filter.zone_ids[1]"),
        (pb::AlertFilter { channels: vec!["c".into(); 1_001], ..any() }, "filter.channels"),
        (pb::AlertFilter { channels: vec!["c".repeat(101)], ..any() }, "filter.channels[0]"),
    ] {
        let request = pb::ListAlertsRequest { filter: Some(filter.clone()), ..Default::default() };
        refused(server.alerts().list_alerts(request).await, path);
        let request = pb::GetAlertStatsRequest { filter: Some(filter), bucket_width: None };
        refused(server.alerts().get_alert_stats(request).await, path);
    }
    server.stop().await;
}
