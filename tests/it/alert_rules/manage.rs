//! Versions of rules, rules that are switched together, and copies.

use tonic::Code;
use watchpost::pb::{self, ChangeKind, Severity, watch_response::Update};

use super::{create, delete, get, update};
use crate::support::{
    TestServer, always,
    calls::{Reply, failed, mask, not_found, refused, seconds, strings},
    database::{Backend, on_both},
    ingest, middle, topics,
};

const NONE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

async fn switch(
    server: &TestServer,
    request: pb::SetAlertRulesEnabledRequest,
) -> Reply<pb::SetAlertRulesEnabledResponse> {
    server.rules().set_alert_rules_enabled(request).await
}

async fn copy(server: &TestServer, request: pb::CloneAlertRuleRequest) -> Reply<pb::AlertRule> {
    server.rules().clone_alert_rule(request).await
}

fn by_ids(ids: &[&str], enabled: bool) -> pb::SetAlertRulesEnabledRequest {
    pb::SetAlertRulesEnabledRequest { ids: strings(ids), enabled: Some(enabled), ..Default::default() }
}

fn by_filter(filter: pb::AlertRuleFilter, enabled: bool) -> pb::SetAlertRulesEnabledRequest {
    pb::SetAlertRulesEnabledRequest { filter: Some(filter), enabled: Some(enabled), ..Default::default() }
}

async fn enabled(server: &TestServer) -> String {
    let request = pb::ListAlertRulesRequest::default();
    let rules = server.rules().list_alert_rules(request).await.unwrap().into_inner().alert_rules;
    let on = rules.into_iter().filter(|rule| rule.enabled == Some(true));
    on.map(|rule| rule.name).collect::<Vec<_>>().join(" ")
}

#[on_both]
async fn a_stale_version_changes_nothing(backend: Backend) {
    let server = TestServer::start(backend).await;
    let first = server.rule(always("a")).await;
    let change = async |expected_version_id, name: &str| {
        let alert_rule = Some(pb::AlertRule { id: first.id.clone(), name: name.into(), ..Default::default() });
        let request = pb::UpdateAlertRuleRequest { alert_rule, update_mask: mask(&["name"]), expected_version_id };
        server.rules().update_alert_rule(request).await
    };
    let remove = async |expected_version_id| {
        let request = pb::DeleteAlertRuleRequest { id: first.id.clone(), expected_version_id };
        server.rules().delete_alert_rule(request).await
    };
    let second = change(Some(1), "b").await.unwrap().into_inner();
    assert_eq!((first.version_id, second.version_id), (1, 2));
    for expected in [Some(1), Some(3), Some(0), Some(i32::MIN)] {
        failed(change(expected, "c").await, Code::Aborted, "STALE_VERSION");
        failed(remove(expected).await, Code::Aborted, "STALE_VERSION");
    }
    assert_eq!(get(&server, &first.id).await.unwrap().into_inner(), second);
    assert_eq!(change(None, "d").await.unwrap().into_inner().version_id, 3);
    remove(Some(3)).await.unwrap();
    not_found(get(&server, &first.id).await, "alert rule", &first.id);
    server.stop().await;
}

#[on_both]
async fn of_two_who_saw_the_same_version_one_changes_the_rule(backend: Backend) {
    let server = TestServer::start(backend).await;
    let rule = server.rule(always("a")).await;
    for version in 1..=10 {
        let changes: Vec<_> = (0..4)
            .map(|n| {
                let alert_rule =
                    Some(pb::AlertRule { id: rule.id.clone(), name: format!("{version} {n}"), ..Default::default() });
                let request =
                    pb::UpdateAlertRuleRequest { alert_rule, update_mask: None, expected_version_id: Some(version) };
                let mut rules = server.rules();
                tokio::spawn(async move { rules.update_alert_rule(request).await })
            })
            .collect();
        let mut winners = 0;
        for reply in changes {
            match reply.await.unwrap() {
                Ok(rule) => {
                    assert_eq!(rule.into_inner().version_id, version + 1);
                    winners += 1;
                }
                reply => {
                    failed(reply, Code::Aborted, "STALE_VERSION");
                }
            }
        }
        assert_eq!(winners, 1);
    }
    server.stop().await;
}

#[on_both]
async fn an_update_that_changes_nothing_is_no_change(backend: Backend) {
    let server = TestServer::start(backend).await;
    let schedule = pb::Schedule { days: vec![7, 1], ..Default::default() };
    let rule = server.rule(pb::AlertRule { schedule: Some(schedule), ..always("a") }).await;
    let mut watch = server.watch(topics(&[pb::Topic::AlertRules])).await;
    let same =
        pb::AlertRule { schedule: Some(pb::Schedule { days: vec![1, 7], ..Default::default() }), ..rule.clone() };
    for paths in [&[][..], &["*"], &["name", "schedule"]] {
        assert_eq!(update(&server, same.clone(), paths).await.unwrap().into_inner(), rule);
    }
    let other = update(&server, pb::AlertRule { name: "b".into(), ..same }, &[]).await.unwrap().into_inner();
    assert_eq!(other.version_id, 2);
    let Update::AlertRule(change) = watch.update().await else { panic!("not a rule") };
    assert_eq!(change.alert_rule, Some(other));
    server.stop().await;
}

#[on_both]
async fn rules_are_switched_together(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let mut ids = Vec::new();
    for (name, severity) in [("a", Severity::Low), ("b", Severity::High), ("c", Severity::High)] {
        ids.push(server.rule(pb::AlertRule { severity: severity.into(), ..always(name) }).await.id);
    }
    let before = get(&server, &ids[0]).await.unwrap().into_inner();
    let any = pb::AlertRuleFilter::default;
    let high = || pb::AlertRuleFilter { severity: Severity::High.into(), ..any() };
    let mut watch = server.watch(topics(&[pb::Topic::AlertRules])).await;
    for (request, expected, on) in [
        (pb::SetAlertRulesEnabledRequest { dry_run: true, ..by_filter(any(), false) }, (3, 3), "c b a"),
        (by_ids(&[&ids[0], &ids[0].to_uppercase()], false), (1, 1), "c b"),
        (by_ids(&[&ids[0], &ids[1]], false), (2, 1), "c"),
        (by_filter(high(), true), (2, 1), "c b"),
        (by_filter(pb::AlertRuleFilter { name: "x".into(), ..any() }, true), (0, 0), "c b"),
        (by_filter(any(), false), (3, 2), ""),
        (by_filter(any(), false), (3, 0), ""),
        (by_filter(any(), true), (3, 3), "c b a"),
    ] {
        let response = switch(&server, request.clone()).await.unwrap().into_inner();
        assert_eq!((response.matched, response.changed), expected, "{request:?}");
        assert_eq!(enabled(&server).await, on, "{request:?}");
        // In force at once.
        let fired = server.ingest("door", vec![]).await.alerts.len();
        assert_eq!(fired, on.split_whitespace().count(), "{request:?}");
        if request.dry_run {
            continue;
        }
        let mut commits = std::collections::HashSet::new();
        for _ in 0..expected.1 {
            let response = watch.change().await;
            commits.insert(response.commit);
            let Some(Update::AlertRule(change)) = response.update else { panic!("not a rule") };
            assert_eq!(change.kind(), ChangeKind::Updated);
            let rule = change.alert_rule.unwrap();
            assert_eq!(rule.enabled, request.enabled);
            if rule.id == ids[0] || expected.1 == 3 {
                assert_eq!(get(&server, &rule.id).await.unwrap().into_inner(), rule);
            }
        }
        assert!(commits.len() <= 1, "one transaction");
    }
    let after = get(&server, &ids[0]).await.unwrap().into_inner();
    // Off, on.
    assert_eq!(after, pb::AlertRule { version_id: 3, updated_at: after.updated_at, ..before });
    let unknown = switch(&server, by_ids(&[NONE, &ids[0]], false)).await.unwrap().into_inner();
    assert_eq!((unknown.matched, unknown.changed, unknown.unknown_ids), (1, 1, strings(&[NONE])));
    server.stop().await;
}

#[on_both]
async fn what_is_to_be_switched_has_to_be_said(backend: Backend) {
    let server = TestServer::start(backend).await;
    let id = server.rule(always("a")).await.id;
    let both =
        pb::SetAlertRulesEnabledRequest { ids: vec![id.clone()], ..by_filter(pb::AlertRuleFilter::default(), false) };
    for (request, path) in [
        (by_ids(&[], false), "ids"),
        (by_ids(&["x"], false), "ids[0]"),
        (pb::SetAlertRulesEnabledRequest { ids: vec![id.clone(); 1_001], ..by_ids(&[], false) }, "ids"),
        (both, "filter"),
        (by_filter(pb::AlertRuleFilter { severity: 9, ..Default::default() }, false), "filter.severity"),
        (pb::SetAlertRulesEnabledRequest { enabled: None, ..by_ids(&[&id], false) }, "enabled"),
    ] {
        refused(switch(&server, request).await, path);
    }
    assert_eq!(enabled(&server).await, "a");
    server.stop().await;
}

#[on_both]
async fn switching_and_ingests_do_not_hold_each_other_up(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    for n in 0..20 {
        let name = n.to_string();
        server.rule(pb::AlertRule { cooldown: seconds(i64::from(n % 2 == 0)), ..always(&name) }).await;
    }
    let switching: Vec<_> = (0..20)
        .map(|n| {
            let mut rules = server.rules();
            let request = by_filter(pb::AlertRuleFilter::default(), n % 2 == 0);
            tokio::spawn(async move { rules.set_alert_rules_enabled(request).await })
        })
        .collect();
    let ingests: Vec<_> = (0..40)
        .map(|_| {
            let mut events = server.events();
            tokio::spawn(async move { events.ingest_event(ingest("door", vec![])).await })
        })
        .collect();
    for reply in switching {
        assert_eq!(reply.await.unwrap().unwrap().into_inner().matched, 20);
    }
    for reply in ingests {
        reply.await.unwrap().unwrap();
    }
    server.stop().await;
}

#[on_both]
async fn a_copy_is_a_rule_of_its_own(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.zone(middle("door", "z")).await;
    server.streams(["mail"]).await;
    let original = pb::AlertRule {
        description: Some("d".into()),
        severity: Severity::High.into(),
        risk_threshold: Some(7),
        zone_ids: strings(&["z"]),
        channels: strings(&["mail"]),
        flap_threshold: Some(1),
        flap_window: seconds(2),
        ..always(&"ü".repeat(255))
    };
    let original = server.rule(original).await;
    let zone = pb::DeleteCameraZoneRequest { id: "z".into(), force: true };
    server.zones().delete_camera_zone(zone).await.unwrap();
    let request = pb::CloneAlertRuleRequest { id: original.id.clone(), ..Default::default() };
    let first = copy(&server, request.clone()).await.unwrap().into_inner();
    let expected = pb::AlertRule {
        id: first.id.clone(),
        name: format!("{} (copy)", "ü".repeat(248)),
        enabled: Some(false),
        created_at: first.created_at,
        updated_at: first.created_at,
        version_id: 1,
        ..original.clone()
    };
    assert_eq!(first, expected);
    assert_ne!(first.id, original.id);
    assert_eq!(get(&server, &first.id).await.unwrap().into_inner(), first);
    let named = pb::CloneAlertRuleRequest { name: Some("x".into()), enabled: Some(true), ..request.clone() };
    let second = copy(&server, named).await.unwrap().into_inner();
    assert_eq!((second.name.as_str(), second.enabled), ("x", Some(true)));
    for (name, path) in [("", "name"), (" ", "name"), ("a\0", "name")] {
        refused(copy(&server, pb::CloneAlertRuleRequest { name: Some(name.into()), ..request.clone() }).await, path);
    }
    let long = pb::CloneAlertRuleRequest { name: Some("ü".repeat(256)), ..request };
    refused(copy(&server, long).await, "name");
    refused(copy(&server, pb::CloneAlertRuleRequest::default()).await, "id");
    not_found(
        copy(&server, pb::CloneAlertRuleRequest { id: NONE.into(), ..Default::default() }).await,
        "alert rule",
        NONE,
    );
    delete(&server, &original.id).await.unwrap();
    assert_eq!(get(&server, &second.id).await.unwrap().into_inner(), second);
    create(&server, always("still works")).await.unwrap();
    server.stop().await;
}
