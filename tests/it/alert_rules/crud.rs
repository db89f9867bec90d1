//! Rules as resources: created, got, listed, updated, deleted.

use serde_json::json;
use watchpost::pb::{self, DayOfWeek, Severity};

use super::{create, delete, get, update};
use crate::support::{
    TestServer, always,
    calls::{at, execute, not_found, object, refused, seconds, strings, walk},
    database::{Backend, on_both},
    middle,
};

const NONE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// A rule in which everything is set that a client can set.
fn full() -> pb::AlertRule {
    pb::AlertRule {
        name: "Nachts 🌙 '%_".into(),
        description: Some(String::new()),
        enabled: Some(false),
        severity: Severity::Critical.into(),
        risk_threshold: Some(0),
        object_types: strings(&["Person", "car, van", "Person"]),
        camera_ids: strings(&["none", "door"]),
        zone_ids: strings(&["zone_1"]),
        min_confidence: Some(0.1 + 0.2),
        schedule: Some(pb::Schedule {
            days: vec![DayOfWeek::Monday.into(), DayOfWeek::Sunday.into()],
            start_time: "22:00".into(),
            end_time: "05:59".into(),
            time_zone: "America/Argentina/Buenos_Aires".into(),
        }),
        dedup_key_template: Some("{object_type}:x-1_{event_id}".into()),
        cooldown: seconds(0),
        channels: strings(&["mail", "sms 🎥", "mail"]),
        flap_threshold: Some(10_000),
        flap_window: seconds(1),
        ..Default::default()
    }
}

/// A server with the zone that `full` names.
async fn server_with_a_zone(backend: Backend) -> TestServer {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.zone(middle("door", "zone_1")).await;
    server.streams(["mail", "sms 🎥"]).await;
    server
}

/// What a rule with this name only is.
fn plain(name: &str) -> pb::AlertRule {
    pb::AlertRule {
        name: name.into(),
        enabled: Some(true),
        severity: Severity::Medium.into(),
        dedup_key_template: Some("{camera_id}:{rule_id}".into()),
        cooldown: seconds(300),
        ..Default::default()
    }
}

/// `expected` with what the server decides of `rule`.
fn kept(expected: pb::AlertRule, rule: &pb::AlertRule) -> pb::AlertRule {
    pb::AlertRule {
        id: rule.id.clone(),
        created_at: rule.created_at,
        updated_at: rule.updated_at,
        version_id: rule.version_id,
        ..expected
    }
}

async fn names(server: &TestServer, filter: pb::AlertRuleFilter) -> String {
    let request = pb::ListAlertRulesRequest { filter: Some(filter), ..Default::default() };
    let reply = server.rules().list_alert_rules(request).await;
    let rules = reply.unwrap().into_inner().alert_rules;
    let names: Vec<_> = rules.into_iter().map(|rule| rule.name).collect();
    names.join(" ")
}

#[on_both]
async fn a_rule_is_kept_as_it_was_sent(backend: Backend) {
    let server = server_with_a_zone(backend).await;
    for (sent, expected) in [
        (pb::AlertRule { name: "x".into(), ..Default::default() }, plain("x")),
        (full(), full()),
        // What is only output is not taken from the client.
        (pb::AlertRule { id: NONE.into(), created_at: at(1), updated_at: at(1), version_id: 9, ..full() }, full()),
        (
            pb::AlertRule { schedule: Some(pb::Schedule::default()), ..plain("y") },
            pb::AlertRule {
                schedule: Some(pb::Schedule { time_zone: "UTC".into(), ..Default::default() }),
                ..plain("y")
            },
        ),
    ] {
        let rule = create(&server, sent).await.unwrap().into_inner();
        assert!(rule.id.len() == 36 && rule.id != NONE);
        assert!(rule.created_at.unwrap().seconds > 1_000_000_000);
        assert_eq!((rule.updated_at, rule.version_id), (rule.created_at, 1));
        assert_eq!(rule, kept(expected, &rule));
        assert_eq!(get(&server, &rule.id).await.unwrap().into_inner(), rule);
        assert_eq!(get(&server, &rule.id.to_uppercase()).await.unwrap().into_inner(), rule);
    }
    server.stop().await;
}

#[on_both]
async fn a_rule_may_be_as_large_as_promised(backend: Backend) {
    let server = TestServer::start(backend).await;
    let wide = |length: u32, seed: u32| {
        (0..length).map(|n| char::from_u32(0x2_0000 + (n * 37 + seed * 101) % 40_000).unwrap()).collect::<String>()
    };
    let ids: Vec<_> = (0..1000).map(|n| format!("{n:064}")).collect();
    server.camera("door").await;
    let zone = |id: &String| format!("('{id}', 'door', '{id}', '[[0, 0], [1, 0], [0, 1]]')");
    let zones = ids.iter().map(zone).collect::<Vec<_>>().join(", ");
    let zones = format!("INSERT INTO camera_zones (id, camera_id, name, coordinates) VALUES {zones}");
    execute(&server, &zones).await;
    server.streams((0..100).map(|n| wide(100, n))).await;
    let sent = pb::AlertRule {
        name: wide(255, 0),
        description: Some(wide(65_536, 0)),
        object_types: (0..100).map(|n| wide(255, n)).collect(),
        camera_ids: (0..1000).map(|n| format!("{n:064}")).collect(),
        zone_ids: ids.clone(),
        channels: (0..100).map(|n| wide(100, n)).collect(),
        dedup_key_template: Some("x".repeat(255)),
        cooldown: seconds(31_536_000),
        ..plain("")
    };
    let rule = create(&server, sent.clone()).await.unwrap().into_inner();
    assert_eq!(rule, kept(sent, &rule));
    server.stop().await;
}

#[on_both]
async fn an_update_changes_what_its_mask_names(backend: Backend) {
    let server = server_with_a_zone(backend).await;
    let id = server.rule(full()).await.id;
    let reset = || async { update(&server, pb::AlertRule { id: id.clone(), ..full() }, &["*"]).await.unwrap() };
    let change = pb::AlertRule {
        id: id.clone(),
        name: "new".into(),
        risk_threshold: Some(7),
        enabled: Some(true),
        object_types: strings(&["dog"]),
        ..Default::default()
    };
    let nothing = pb::AlertRule { id: id.clone(), ..Default::default() };
    for (sent, paths, expected) in [
        (
            &change,
            &[][..],
            pb::AlertRule {
                name: "new".into(),
                risk_threshold: Some(7),
                enabled: Some(true),
                object_types: strings(&["dog"]),
                ..full()
            },
        ),
        (&change, &["risk_threshold", "risk_threshold"], pb::AlertRule { risk_threshold: Some(7), ..full() }),
        (&change, &["*"], pb::AlertRule { risk_threshold: Some(7), object_types: strings(&["dog"]), ..plain("new") }),
        (&nothing, &[], full()),
        (&nothing, &["description"], pb::AlertRule { description: None, ..full() }),
        (&nothing, &["enabled"], pb::AlertRule { enabled: Some(true), ..full() }),
        (&nothing, &["severity"], pb::AlertRule { severity: Severity::Medium.into(), ..full() }),
        (
            &nothing,
            &["risk_threshold", "min_confidence"],
            pb::AlertRule { risk_threshold: None, min_confidence: None, ..full() },
        ),
        (
            &nothing,
            &["object_types", "camera_ids", "zone_ids", "channels"],
            pb::AlertRule { object_types: vec![], camera_ids: vec![], zone_ids: vec![], channels: vec![], ..full() },
        ),
        (&nothing, &["schedule"], pb::AlertRule { schedule: None, ..full() }),
        (
            &nothing,
            &["dedup_key_template"],
            pb::AlertRule { dedup_key_template: plain("").dedup_key_template, ..full() },
        ),
        (&nothing, &["cooldown"], pb::AlertRule { cooldown: seconds(300), ..full() }),
        (&nothing, &["conditions"], full()),
        (
            &nothing,
            &["flap_threshold", "flap_window"],
            pb::AlertRule { flap_threshold: None, flap_window: None, ..full() },
        ),
    ] {
        let before = reset().await.into_inner();
        let rule = update(&server, sent.clone(), paths).await.unwrap().into_inner();
        assert_eq!(rule, kept(expected, &rule), "{paths:?}");
        assert_eq!((&rule.id, rule.created_at), (&before.id, before.created_at));
        assert_eq!(get(&server, &id).await.unwrap().into_inner(), rule);
    }
    let before = reset().await.into_inner();
    for path in
        ["id", "created_at", "updated_at", "version_id", "nope", "schedule.days", "alert_rule.name", "Enabled", ""]
    {
        refused(update(&server, change.clone(), &["name", path]).await, "update_mask");
    }
    refused(update(&server, nothing.clone(), &["name"]).await, "alert_rule.name");
    refused(update(&server, nothing, &["*"]).await, "alert_rule.name");
    assert_eq!(get(&server, &id).await.unwrap().into_inner(), before);
    server.stop().await;
}

#[on_both]
async fn conditions_in_their_old_form_become_fields(backend: Backend) {
    let server = TestServer::start(backend).await;
    let old = json!({
        "risk_threshold": 70, "object_types": ["person"], "camera_ids": ["door"], "min_confidence": 0.5,
        "time_ranges": [{"start": "22:00", "end": "06:00"}]
    });
    let schedule =
        pb::Schedule { start_time: "22:00".into(), end_time: "06:00".into(), time_zone: "UTC".into(), days: vec![] };
    let new = pb::AlertRule {
        risk_threshold: Some(70),
        object_types: strings(&["person"]),
        camera_ids: strings(&["door"]),
        min_confidence: Some(0.5),
        schedule: Some(schedule),
        ..plain("old")
    };
    let rule = create(&server, pb::AlertRule { conditions: object(&old), ..plain("old") }).await.unwrap().into_inner();
    assert_eq!(rule, kept(new.clone(), &rule));
    let empty = pb::AlertRule { id: rule.id.clone(), conditions: object(&json!({})), ..Default::default() };
    let updated = update(&server, empty, &[]).await.unwrap().into_inner();
    assert_eq!(updated, kept(new.clone(), &updated));
    // The rule has a threshold, and would have two.
    let twice =
        pb::AlertRule { id: rule.id.clone(), conditions: object(&json!({"risk_threshold": 1})), ..Default::default() };
    refused(update(&server, twice.clone(), &[]).await, "alert_rule.conditions.risk_threshold");
    let instead = update(&server, twice, &["conditions", "risk_threshold"]).await.unwrap().into_inner();
    assert_eq!(instead, kept(pb::AlertRule { risk_threshold: Some(1), ..new }, &instead));
    server.stop().await;
}

#[on_both]
async fn an_unknown_rule_is_not_found(backend: Backend) {
    let server = TestServer::start(backend).await;
    let gone = server.rule(always("gone")).await.id;
    delete(&server, &gone).await.unwrap();
    for id in [NONE, &gone] {
        not_found(get(&server, id).await, "alert rule", id);
        not_found(delete(&server, id).await, "alert rule", id);
        not_found(update(&server, pb::AlertRule { id: id.into(), ..full() }, &[]).await, "alert rule", id);
    }
    server.stop().await;
}

#[on_both]
async fn pages_neither_skip_nor_repeat_rules_of_equal_times(backend: Backend) {
    let server = TestServer::start(backend).await;
    for n in 0..7 {
        server.rule(always(&n.to_string())).await;
    }
    execute(&server, "UPDATE alert_rules SET created_at = '2026-01-02T03:04:05.678901+00:00' WHERE name <> '3'").await;
    walk(7, async |page_size, page_token| {
        let request = pb::ListAlertRulesRequest { page_size, page_token, filter: None };
        let page = server.rules().list_alert_rules(request).await.unwrap().into_inner();
        (page.alert_rules, page.next_page_token)
    })
    .await;
    server.stop().await;
}

#[on_both]
async fn rules_are_listed_newest_first_by_every_filter(backend: Backend) {
    let server = TestServer::start(backend).await;
    for (name, enabled, severity) in
        [("Night", true, Severity::Low), ("night_2", false, Severity::Medium), ("100%Öl", true, Severity::Medium)]
    {
        server.rule(pb::AlertRule { enabled: Some(enabled), severity: severity.into(), ..plain(name) }).await;
    }
    let any = pb::AlertRuleFilter::default;
    let name = |name: &str| pb::AlertRuleFilter { name: name.into(), ..any() };
    for (filter, expected) in [
        (any(), "100%Öl night_2 Night"),
        (pb::AlertRuleFilter { enabled: Some(true), ..any() }, "100%Öl Night"),
        (pb::AlertRuleFilter { enabled: Some(false), ..any() }, "night_2"),
        (pb::AlertRuleFilter { severity: Severity::Medium.into(), ..any() }, "100%Öl night_2"),
        (pb::AlertRuleFilter { severity: Severity::High.into(), ..any() }, ""),
        (name("NIGHT"), "night_2 Night"),
        (name("_"), "night_2"),
        (name("%"), "100%Öl"),
        (name("Öl"), "100%Öl"),
        (name("\\"), ""),
        (pb::AlertRuleFilter { enabled: Some(true), severity: Severity::Low.into(), ..name("i") }, "Night"),
    ] {
        assert_eq!(names(&server, filter.clone()).await, expected, "{filter:?}");
    }
    server.stop().await;
}

#[on_both]
async fn a_deleted_rule_leaves_its_alerts_without_it(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let rule = server.rule(always("everything")).await;
    let cools_down = server.rule(pb::AlertRule { cooldown: seconds(60), ..always("once") }).await;
    let raised = server.ingest("door", vec![]).await.alerts;
    assert_eq!(raised.len(), 2);
    for id in [&rule.id, &cools_down.id] {
        delete(&server, id).await.unwrap();
    }
    for alert in raised {
        assert!(alert.rule_id.is_some());
        let got = server.alerts().get_alert(pb::GetAlertRequest { id: alert.id.clone() }).await;
        assert_eq!(got.unwrap().into_inner(), pb::Alert { rule_id: None, ..alert });
    }
    assert_eq!(server.explained("door", vec![]).await.rule_outcomes, []);
    server.stop().await;
}
