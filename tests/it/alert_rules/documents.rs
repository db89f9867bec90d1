//! Rules that go into a document and come back.

use serde_json::{Value, json};
use tonic::Code;
use watchpost::pb::{self, ChangeKind, DayOfWeek, ImportAction, Severity, watch_response::Update};

use super::{delete, get, update};
use crate::support::{
    TestServer, always,
    calls::{Reply, failed, refused, rows, seconds, strings},
    database::{Backend, on_both},
    field, middle, topics,
};

const NEW: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

async fn export(server: &TestServer, filter: pb::AlertRuleFilter) -> String {
    let request = pb::ExportAlertRulesRequest { filter: Some(filter), with_output_only: false };
    let response = server.rules().export_alert_rules(request).await.unwrap().into_inner();
    let rules = read(&response.document)["alert_rules"].as_array().unwrap().len();
    assert_eq!(i32::try_from(rules).unwrap(), response.alert_rules);
    response.document
}

async fn all(server: &TestServer) -> String {
    export(server, pb::AlertRuleFilter::default()).await
}

async fn import(server: &TestServer, document: &str, dry_run: bool) -> Reply<pb::ImportAlertRulesResponse> {
    let document = document.to_string();
    let request = pb::ImportAlertRulesRequest { document, dry_run };
    server.rules().import_alert_rules(request).await
}

/// How many were created, updated, and left alone.
async fn imported(server: &TestServer, document: &str) -> (i32, i32, i32) {
    counts(&import(server, document, false).await.unwrap().into_inner())
}

fn counts(response: &pb::ImportAlertRulesResponse) -> (i32, i32, i32) {
    let count = |action: ImportAction| {
        let found = response.results.iter().filter(|result| result.action() == action);
        i32::try_from(found.count()).unwrap()
    };
    let told = (response.created, response.updated, response.unchanged);
    let found = (count(ImportAction::Created), count(ImportAction::Updated), count(ImportAction::Unchanged));
    assert_eq!(told, found);
    told
}

fn read(document: &str) -> Value {
    serde_json::from_str(document).unwrap()
}

fn document(rules: &Value) -> String {
    json!({"format": "watchpost.alert_rules", "version": 1, "alert_rules": rules}).to_string()
}

fn full() -> pb::AlertRule {
    pb::AlertRule {
        name: "Nachts 🌙 \"\\".into(),
        description: Some("one\ntwo".into()),
        enabled: Some(false),
        severity: Severity::Critical.into(),
        risk_threshold: Some(70),
        object_types: strings(&["person"]),
        camera_ids: strings(&["door"]),
        zone_ids: strings(&["z"]),
        min_confidence: Some(0.1 + 0.2),
        schedule: Some(pb::Schedule {
            days: vec![DayOfWeek::Friday.into()],
            start_time: "22:00".into(),
            end_time: "06:00".into(),
            time_zone: "Europe/Berlin".into(),
        }),
        dedup_key_template: Some("{zone_id}".into()),
        cooldown: seconds(0),
        channels: strings(&["mail"]),
        flap_threshold: Some(5),
        flap_window: seconds(60),
        escalation: vec![pb::EscalationStep { after: seconds(300), channels: strings(&["mail"]) }],
        ..Default::default()
    }
}

async fn ready(backend: Backend) -> TestServer {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.zone(middle("door", "z")).await;
    server.streams(["mail"]).await;
    server
}

#[on_both]
async fn a_document_reads_as_is_promised(backend: Backend) {
    let server = ready(backend).await;
    let empty = "{\n  \"format\": \"watchpost.alert_rules\",\n  \"version\": 1,\n  \"alert_rules\": []\n}\n";
    assert_eq!(all(&server).await, empty);
    let first = server.rule(full()).await.id;
    let second = server.rule(pb::AlertRule { name: "plain".into(), ..Default::default() }).await;
    let expected = format!(
        r#"{{
  "format": "watchpost.alert_rules",
  "version": 1,
  "alert_rules": [
    {{
      "id": "{first}",
      "name": "Nachts 🌙 \"\\",
      "description": "one\ntwo",
      "enabled": false,
      "severity": "critical",
      "risk_threshold": 70,
      "object_types": [
        "person"
      ],
      "camera_ids": [
        "door"
      ],
      "zone_ids": [
        "z"
      ],
      "min_confidence": 0.30000000000000004,
      "schedule": {{
        "days": [
          "friday"
        ],
        "start_time": "22:00",
        "end_time": "06:00",
        "time_zone": "Europe/Berlin"
      }},
      "dedup_key_template": "{{zone_id}}",
      "cooldown": "0s",
      "channels": [
        "mail"
      ],
      "flap_threshold": 5,
      "flap_window": "60s",
      "escalation": [
        {{
          "after": "300s",
          "channels": [
            "mail"
          ]
        }}
      ]
    }},
    {{
      "id": "{}",
      "name": "plain",
      "enabled": true,
      "severity": "medium",
      "dedup_key_template": "{{camera_id}}:{{rule_id}}",
      "cooldown": "300s"
    }}
  ]
}}
"#,
        second.id
    );
    assert_eq!(all(&server).await, expected);
    let on = pb::AlertRuleFilter { enabled: Some(true), ..Default::default() };
    let on = read(&export(&server, on).await);
    assert_eq!(on["alert_rules"].as_array().unwrap().len(), 1);
    assert_eq!(on["alert_rules"][0]["name"], "plain");
    let request = pb::ExportAlertRulesRequest { filter: None, with_output_only: true };
    let told = server.rules().export_alert_rules(request).await.unwrap().into_inner().document;
    let told = &read(&told)["alert_rules"][1];
    assert_eq!(told["version_id"], 1);
    for key in ["created_at", "updated_at"] {
        let time: chrono::DateTime<chrono::Utc> = told[key].as_str().unwrap().parse().unwrap();
        let micros = i64::from(second.created_at.unwrap().nanos) / 1_000;
        assert_eq!(
            (time.timestamp(), i64::from(time.timestamp_subsec_micros())),
            (second.created_at.unwrap().seconds, micros)
        );
    }
    let bad = pb::ExportAlertRulesRequest {
        filter: Some(pb::AlertRuleFilter { severity: 9, ..Default::default() }),
        ..Default::default()
    };
    refused(server.rules().export_alert_rules(bad).await, "filter.severity");
    server.stop().await;
}

#[on_both]
async fn what_comes_back_changes_nothing_and_brings_back_what_is_gone(backend: Backend) {
    let server = ready(backend).await;
    let mut rules = Vec::new();
    for rule in [full(), always("a"), always("b")] {
        rules.push(server.rule(rule).await);
    }
    let kept = all(&server).await;
    let mut watch = server.watch(topics(&[pb::Topic::AlertRules])).await;
    assert_eq!(imported(&server, &kept).await, (0, 0, 3));
    update(&server, pb::AlertRule { id: rules[0].id.clone(), ..always("other") }, &["*"]).await.unwrap();
    delete(&server, &rules[1].id).await.unwrap();
    server.rule(always("not in it")).await;
    let before = rows(&server).await;
    let dry = import(&server, &kept, true).await.unwrap().into_inner();
    assert_eq!(counts(&dry), (1, 1, 1));
    assert_eq!(rows(&server).await, before);
    let response = import(&server, &kept, false).await.unwrap().into_inner();
    assert_eq!(response, dry);
    let ids: Vec<_> = response.results.iter().map(|result| result.id.clone()).collect();
    assert_eq!(ids, rules.iter().map(|rule| rule.id.clone()).collect::<Vec<_>>());
    for (rule, version_id) in rules.iter().zip([3, 1, 1]) {
        let now = get(&server, &rule.id).await.unwrap().into_inner();
        let expected =
            pb::AlertRule { version_id, created_at: now.created_at, updated_at: now.updated_at, ..rule.clone() };
        assert_eq!(now, expected);
    }
    assert_eq!(imported(&server, &kept).await, (0, 0, 3));
    let mut told = Vec::new();
    for _ in 0..5 {
        let response = watch.change().await;
        let commit = response.commit;
        let Some(Update::AlertRule(change)) = response.update else { panic!("not a rule") };
        let kind = change.kind();
        told.push((kind, change.alert_rule.unwrap().name, commit));
    }
    let kinds: Vec<_> = told.iter().map(|(kind, name, _)| (*kind, name.as_str())).collect();
    let (created, updated) = (ChangeKind::Created, ChangeKind::Updated);
    let expected = [
        (updated, "other"),
        (ChangeKind::Deleted, "a"),
        (created, "not in it"),
        (updated, &*full().name),
        (created, "a"),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(told[3].2, told[4].2, "one transaction");
    server.stop().await;
}

#[on_both]
async fn the_same_rules_on_another_database_are_the_same_bytes(backend: Backend) {
    let (one, two) = (ready(backend).await, ready(backend).await);
    for rule in [full(), always("a"), always("b")] {
        one.rule(rule).await;
    }
    let kept = all(&one).await;
    assert_eq!(imported(&two, &kept).await, (3, 0, 0));
    assert_eq!(all(&two).await, kept);
    one.stop().await;
    two.stop().await;
}

#[on_both]
async fn people_write_rules(backend: Backend) {
    let server = ready(backend).await;
    let old = server.rule(full()).await;
    let written = document(&json!([
        {"name": "new", "risk_threshold": null, "object_types": ["dog"]},
        {"id": old.id, "name": "only a name"},
        {"id": NEW, "name": "mine", "conditions": {"risk_threshold": 7}, "version_id": 12},
    ]));
    let dry = import(&server, &written, true).await.unwrap().into_inner();
    assert_eq!((counts(&dry), dry.results[0].id.as_str()), ((2, 1, 0), ""));
    let response = import(&server, &written, false).await.unwrap().into_inner();
    assert_eq!(counts(&response), (2, 1, 0));
    assert_eq!(response.results[2].id, NEW);
    let new = get(&server, &response.results[0].id).await.unwrap().into_inner();
    assert_eq!((new.name.as_str(), new.object_types, new.cooldown), ("new", strings(&["dog"]), seconds(300)));
    // All of it: what is left out goes back to its default.
    let changed = get(&server, &old.id).await.unwrap().into_inner();
    let expected = pb::AlertRule {
        id: old.id,
        name: "only a name".into(),
        enabled: Some(true),
        severity: Severity::Medium.into(),
        dedup_key_template: Some("{camera_id}:{rule_id}".into()),
        cooldown: seconds(300),
        created_at: old.created_at,
        updated_at: changed.updated_at,
        version_id: 2,
        ..Default::default()
    };
    assert_eq!(changed, expected);
    assert_eq!(get(&server, NEW).await.unwrap().into_inner().risk_threshold, Some(7));
    // In force at once.
    let fired = server.ingest("door", vec![]).await.alerts.len();
    assert_eq!(fired, 1);
    server.stop().await;
}

#[on_both]
async fn a_bad_rule_is_named_by_its_place_and_nothing_is_written(backend: Backend) {
    let server = ready(backend).await;
    let old = server.rule(pb::AlertRule { zone_ids: strings(&["z"]), ..always("old") }).await;
    let before = (rows(&server).await, all(&server).await);
    let with = |rule: &Value| document(&json!([{"name": "a"}, {"id": old.id, "name": "b"}, rule]));
    for (rule, path) in [
        (json!({}), "name"),
        (json!({"name": " "}), "name"),
        (json!({"name": "c", "nope": 1}), "nope"),
        (json!({"name": "c", "risk_threshold": 101}), "risk_threshold"),
        (json!({"name": "c", "min_confidence": 1.5}), "min_confidence"),
        (json!({"name": "c", "object_types": ["a", ""]}), "object_types[1]"),
        (json!({"name": "c", "schedule": {"time_zone": "Mars"}}), "schedule.time_zone"),
        (json!({"name": "c", "schedule": {"days": ["monday", "monday"]}}), "schedule.days[1]"),
        (json!({"name": "c", "schedule": {"start_time": "22:00"}}), "schedule.end_time"),
        (json!({"name": "c", "dedup_key_template": "{nope}"}), "dedup_key_template"),
        (json!({"name": "c", "flap_threshold": 1}), "flap_window"),
        (json!({"name": "c", "cooldown": "0.5s"}), "cooldown"),
        (json!({"name": "c", "cooldown": 300}), "cooldown"),
        (json!({"name": "c", "escalation": [{"after": "604801s", "channels": ["mail"]}]}), "escalation[0].after"),
        (json!({"name": "c", "conditions": {"nope": 1}}), "conditions.nope"),
        (json!({"id": old.id, "name": "c"}), "id"),
    ] {
        for dry_run in [true, false] {
            let path = format!("alert_rules[2].{path}");
            refused(import(&server, &with(&rule), dry_run).await, &path);
        }
    }
    for (rule, path) in [
        (json!({"name": "c", "zone_ids": ["z", "nope"]}), "alert_rules[2].zone_ids[1]"),
        (json!({"id": NEW, "name": "c", "zone_ids": ["nope"]}), "alert_rules[2].zone_ids[0]"),
    ] {
        for dry_run in [true, false] {
            let status =
                failed(import(&server, &with(&rule), dry_run).await, Code::FailedPrecondition, "BROKEN_REFERENCE");
            assert_eq!(field(&status), path);
        }
    }
    refused(import(&server, "", false).await, "document");
    refused(import(&server, "{", false).await, "document");
    assert_eq!((rows(&server).await, all(&server).await), before);
    // What it named before it may go on naming.
    let zone = pb::DeleteCameraZoneRequest { id: "z".into(), force: true };
    server.zones().delete_camera_zone(zone).await.unwrap();
    assert_eq!(imported(&server, &before.1).await, (0, 0, 1));
    server.stop().await;
}

#[on_both]
async fn many_rules_fit_one_document(backend: Backend) {
    let server = ready(backend).await;
    let rules: Vec<_> = (0..2_500).map(|n| json!({"name": format!("rule {n}"), "zone_ids": ["z"]})).collect();
    assert_eq!(imported(&server, &document(&rules.into())).await, (2_500, 0, 0));
    let kept = all(&server).await;
    assert_eq!(imported(&server, &kept).await, (0, 0, 2_500));
    let moved = kept.replace("\"severity\": \"medium\"", "\"severity\": \"high\"");
    assert_eq!(imported(&server, &moved).await, (0, 2_500, 0));
    assert_eq!(all(&server).await, moved);
    server.stop().await;
}
