//! Rules that cannot be.

use serde_json::json;
use watchpost::pb;

use super::{HUGE, ready, refused};
use crate::support::{
    TestServer, always,
    calls::{mask, nanos, object, rows, seconds, strings},
    database::{Backend, on_both},
};

/// That a rule is refused because of this field, be it new or the change of another.
async fn bad(server: &TestServer, id: &str, rule: pb::AlertRule, path: &str) {
    let path = format!("alert_rule.{path}");
    let alert_rule = Some(rule.clone());
    let create = pb::CreateAlertRuleRequest { alert_rule };
    refused(server.rules().create_alert_rule(create).await, &path);
    let alert_rule = Some(pb::AlertRule { id: id.into(), ..rule });
    let update = pb::UpdateAlertRuleRequest { alert_rule, update_mask: mask(&["*"]), expected_version_id: None };
    refused(server.rules().update_alert_rule(update).await, &path);
}

#[on_both]
async fn a_bad_rule_is_refused(backend: Backend) {
    let server = ready(backend).await;
    let id = server.rule(always("to be changed")).await.id;
    let before = rows(&server).await;
    let any = || always("new");
    let many = |count: usize| vec!["x".to_string(); count];
    for (rule, path) in vec![
        (always(""), "name"),
        (always(" \u{2003}\n"), "name"),
        (always("a\0"), "name"),
        (always(&"ü".repeat(256)), "name"),
        (always(&"n".repeat(HUGE)), "name"),
        (pb::AlertRule { description: Some("\0".into()), ..any() }, "description"),
        (pb::AlertRule { description: Some("d".repeat(65_537)), ..any() }, "description"),
        (pb::AlertRule { severity: 5, ..any() }, "severity"),
        (pb::AlertRule { severity: i32::MIN, ..any() }, "severity"),
        (pb::AlertRule { risk_threshold: Some(-1), ..any() }, "risk_threshold"),
        (pb::AlertRule { risk_threshold: Some(101), ..any() }, "risk_threshold"),
        (pb::AlertRule { min_confidence: Some(-0.1), ..any() }, "min_confidence"),
        (pb::AlertRule { min_confidence: Some(1.1), ..any() }, "min_confidence"),
        (pb::AlertRule { min_confidence: Some(f64::NAN), ..any() }, "min_confidence"),
        (pb::AlertRule { min_confidence: Some(f64::INFINITY), ..any() }, "min_confidence"),
        (pb::AlertRule { cooldown: seconds(-1), ..any() }, "cooldown"),
        (pb::AlertRule { cooldown: seconds(31_536_001), ..any() }, "cooldown"),
        (pb::AlertRule { cooldown: seconds(i64::MAX), ..any() }, "cooldown"),
        (pb::AlertRule { cooldown: nanos(1), ..any() }, "cooldown"),
        (pb::AlertRule { cooldown: nanos(-1), ..any() }, "cooldown"),
        (pb::AlertRule { cooldown: nanos(1_000_000_000), ..any() }, "cooldown"),
        (pb::AlertRule { flap_threshold: Some(1), flap_window: nanos(999_999_999), ..any() }, "flap_window"),
        (pb::AlertRule { flap_threshold: Some(0), flap_window: seconds(1), ..any() }, "flap_threshold"),
        (pb::AlertRule { flap_threshold: Some(10_001), flap_window: seconds(1), ..any() }, "flap_threshold"),
        (pb::AlertRule { flap_threshold: Some(1), flap_window: seconds(0), ..any() }, "flap_window"),
        (pb::AlertRule { flap_threshold: Some(1), flap_window: seconds(86_401), ..any() }, "flap_window"),
        (pb::AlertRule { flap_threshold: Some(1), ..any() }, "flap_window"),
        (pb::AlertRule { flap_window: seconds(1), ..any() }, "flap_threshold"),
        (pb::AlertRule { object_types: many(101), ..any() }, "object_types"),
        (pb::AlertRule { object_types: strings(&["a", ""]), ..any() }, "object_types[1]"),
        (pb::AlertRule { object_types: vec!["ü".repeat(256)], ..any() }, "object_types[0]"),
        (pb::AlertRule { camera_ids: many(1001), ..any() }, "camera_ids"),
        (pb::AlertRule { camera_ids: strings(&["a\0"]), ..any() }, "camera_ids[0]"),
        (pb::AlertRule { camera_ids: vec!["x".repeat(65)], ..any() }, "camera_ids[0]"),
        (pb::AlertRule { zone_ids: many(1001), ..any() }, "zone_ids"),
        (pb::AlertRule { zone_ids: strings(&[" "]), ..any() }, "zone_ids[0]"),
        (pb::AlertRule { channels: many(101), ..any() }, "channels"),
        (pb::AlertRule { channels: strings(&["mail", "\t"]), ..any() }, "channels[1]"),
        (pb::AlertRule { channels: vec!["c".repeat(101)], ..any() }, "channels[0]"),
    ] {
        bad(&server, &id, rule, path).await;
    }
    let long = "x".repeat(256);
    for template in [
        "",
        " ",
        "{",
        "}",
        "{}",
        "{camera_id",
        "camera_id}",
        "{{camera_id}}",
        "{camera_id}}",
        "{ camera_id }",
        "{user}",
        "{Camera_id}",
        "{object_type",
        "a b",
        "a.b",
        "ü",
        "a\0",
        "{\0}",
        "{ü}",
        "{camera_id}{camera_id}{camera_id}{camera_id}",
        &long,
    ] {
        let rule = pb::AlertRule { dedup_key_template: Some(template.into()), ..any() };
        bad(&server, &id, rule, "dedup_key_template").await;
    }
    refused(server.rules().create_alert_rule(pb::CreateAlertRuleRequest::default()).await, "alert_rule");
    refused(server.rules().update_alert_rule(pb::UpdateAlertRuleRequest::default()).await, "alert_rule");
    unharmed_by_rules(&server, &before).await;
    server.stop().await;
}

#[on_both]
async fn a_bad_schedule_is_refused(backend: Backend) {
    let server = ready(backend).await;
    let id = server.rule(always("to be changed")).await.id;
    let before = rows(&server).await;
    let day = pb::Schedule { start_time: "08:00".into(), end_time: "18:00".into(), ..Default::default() };
    let days = |days: &[i32]| pb::Schedule { days: days.into(), ..day.clone() };
    let start = |start: &str| pb::Schedule { start_time: start.into(), ..day.clone() };
    let end = |end: &str| pb::Schedule { end_time: end.into(), ..day.clone() };
    let zone = |timezone: &str| pb::Schedule { time_zone: timezone.into(), ..day.clone() };
    let long = "Europe/".to_string() + &"x".repeat(HUGE);
    for (schedule, path) in [
        (days(&[0]), "days[0]"),
        (days(&[1, 8]), "days[1]"),
        (days(&[-1]), "days[0]"),
        (days(&[1, 2, 1]), "days[2]"),
        (start(""), "start_time"),
        (end(""), "end_time"),
        (end("08:00"), "end_time"),
        (end("24:00"), "end_time"),
        (start("24:00"), "start_time"),
        (start("23:60"), "start_time"),
        (start("8:00"), "start_time"),
        (start("08:00:00"), "start_time"),
        (start("-1:00"), "start_time"),
        (start(" 8:00"), "start_time"),
        (start("０８:００"), "start_time"),
        (start("08:0\0"), "start_time"),
        (zone("Mars/Olympus"), "time_zone"),
        (zone(" "), "time_zone"),
        (zone("Europe/Berlin\0"), "time_zone"),
        (zone("../etc/passwd"), "time_zone"),
        (zone("+01:00"), "time_zone"),
        (zone(&long), "time_zone"),
    ] {
        let rule = pb::AlertRule { schedule: Some(schedule), ..always("new") };
        bad(&server, &id, rule, &format!("schedule.{path}")).await;
    }
    unharmed_by_rules(&server, &before).await;
    server.stop().await;
}

#[on_both]
async fn bad_conditions_in_their_old_form_are_refused(backend: Backend) {
    let server = ready(backend).await;
    let id = server.rule(always("to be changed")).await.id;
    let before = rows(&server).await;
    for (conditions, path) in [
        (json!({"nope": 1}), "conditions.nope"),
        (json!({"zone_ids": []}), "conditions.zone_ids"),
        (json!({"risk_threshold": "70"}), "conditions.risk_threshold"),
        (json!({"risk_threshold": null}), "conditions.risk_threshold"),
        (json!({"risk_threshold": 70.5}), "conditions.risk_threshold"),
        (json!({"risk_threshold": 1e300}), "conditions.risk_threshold"),
        (json!({"risk_threshold": 101}), "risk_threshold"),
        (json!({"min_confidence": [0.5]}), "conditions.min_confidence"),
        (json!({"min_confidence": 2}), "min_confidence"),
        (json!({"object_types": "person"}), "conditions.object_types"),
        (json!({"object_types": [1]}), "conditions.object_types[0]"),
        (json!({"object_types": ["a", "\0"]}), "object_types[1]"),
        (json!({"camera_ids": {}}), "conditions.camera_ids"),
        (json!({"camera_ids": [null]}), "conditions.camera_ids[0]"),
        (json!({"time_ranges": {}}), "conditions.time_ranges"),
        (json!({"time_ranges": []}), "conditions.time_ranges"),
        (json!({"time_ranges": ["22:00"]}), "conditions.time_ranges[0]"),
        (json!({"time_ranges": [{"start": "1", "end": "2"}, {}]}), "conditions.time_ranges"),
        (json!({"time_ranges": [{"start": "22:00"}]}), "conditions.time_ranges[0].end"),
        (json!({"time_ranges": [{"start": "22:00", "end": "06:00", "day": 1}]}), "conditions.time_ranges[0].day"),
        (json!({"time_ranges": [{"start": "22:00", "end": "24:00"}]}), "schedule.end_time"),
    ] {
        let rule = pb::AlertRule { conditions: object(&conditions), ..always("new") };
        bad(&server, &id, rule, path).await;
    }
    let both =
        pb::AlertRule { risk_threshold: Some(1), conditions: object(&json!({"risk_threshold": 1})), ..always("new") };
    bad(&server, &id, both, "conditions.risk_threshold").await;
    unharmed_by_rules(&server, &before).await;
    server.stop().await;
}

/// As `unharmed`, for a server with two rules.
async fn unharmed_by_rules(server: &TestServer, before: &[(&'static str, i64)]) {
    assert_eq!(rows(server).await, before);
    assert_eq!(server.ingest("door", vec![]).await.alerts.len(), 2);
}
