//! Rules that fire too often: so many alerts, then one that stands for the rest.

use std::collections::HashSet;

use prost_types::value::Kind;
use tonic::transport::Channel;
use watchpost::pb::{self, RuleStop, event_service_client::EventServiceClient};

use super::update;
use crate::support::{
    TestServer, always,
    calls::{execute, seconds},
    connect,
    database::{Backend, on_both},
    detection, ingest, start,
};

fn flaps(threshold: i32, window: i64) -> pb::AlertRule {
    pb::AlertRule { flap_threshold: Some(threshold), flap_window: seconds(window), ..always("flaps") }
}

fn says_so(alert: &pb::Alert) -> bool {
    let metadata = alert.metadata.as_ref().unwrap();
    let kind = |key: &str| metadata.fields.get(key).and_then(|value| value.kind.clone());
    let says_so = kind("flapping") == Some(Kind::BoolValue(true));
    for key in ["flap_threshold", "flap_window_seconds"] {
        assert_eq!(kind(key).is_some(), says_so, "{metadata:?}");
    }
    says_so
}

/// Ingests an event: `r` if the only rule raised an alert, `M` if this says that it flaps, `.` if it
/// was held back, `c` if it was cooling down. And the alert that was raised or stands for it.
async fn one(server: &TestServer, object_type: &str) -> (char, String) {
    let response = server.ingest("door", vec![detection(object_type, 1.0)]).await;
    let outcome = &response.rule_outcomes[0];
    let own = |alert: &&pb::Alert| alert.rule_id.as_ref() == Some(&outcome.rule_id);
    let raised: Vec<_> = response.alerts.iter().filter(own).collect();
    let told = match outcome.stopped_by() {
        RuleStop::Unspecified if says_so(raised[0]) => 'M',
        RuleStop::Unspecified => 'r',
        RuleStop::Flapping => '.',
        RuleStop::Cooldown => 'c',
        other => panic!("{other:?}"),
    };
    assert_eq!(raised.len(), usize::from(outcome.fired));
    (told, outcome.alert_id.clone().unwrap())
}

async fn many(server: &TestServer, count: usize) -> String {
    let mut told = String::new();
    for _ in 0..count {
        told.push(one(server, "dog").await.0);
    }
    told
}

/// As if so many seconds had gone by.
async fn later(server: &TestServer, seconds: i64) {
    let us = seconds * 1_000_000;
    let sql = format!("UPDATE alert_flaps SET window_started_at_us = window_started_at_us - {us}");
    execute(server, &sql).await;
    let sql = format!("UPDATE alert_cooldowns SET raised_at_us = raised_at_us - {us}");
    execute(server, &sql).await;
}

async fn ready(backend: Backend, rule: pb::AlertRule) -> (TestServer, pb::AlertRule) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let rule = server.rule(rule).await;
    (server, rule)
}

#[on_both]
async fn a_window_raises_so_many_alerts_and_one_that_says_so(backend: Backend) {
    let (server, _) = ready(backend, flaps(3, 3_600)).await;
    server.rule(always("never flaps")).await;
    assert_eq!(many(&server, 6).await, "rrrM..");
    let (told, standing) = one(&server, "dog").await;
    let alerts = server.alerts().list_alerts(pb::ListAlertsRequest::default()).await.unwrap().into_inner().alerts;
    let marked: Vec<_> = alerts.iter().filter(|alert| says_so(alert)).collect();
    assert_eq!((told, marked.len()), ('.', 1));
    assert_eq!(marked[0].id, standing);
    let number = |key: &str| marked[0].metadata.as_ref().unwrap().fields[key].kind.clone();
    assert_eq!(number("flap_threshold"), Some(Kind::NumberValue(3.0)));
    assert_eq!(number("flap_window_seconds"), Some(Kind::NumberValue(3_600.0)));
    let of_other = alerts.iter().filter(|alert| alert.rule_id != marked[0].rule_id).count();
    assert_eq!((alerts.len(), of_other), (4 + 7, 7));
    let response = server.ingest("door", vec![]).await;
    assert_eq!(response.rule_outcomes[0].detail, "the rule flaps: more than 3 alerts in 3600 s");
    server.stop().await;
}

#[on_both]
async fn windows_that_follow_at_once_begin_damped(backend: Backend) {
    let (server, rule) = ready(backend, flaps(2, 3_600)).await;
    assert_eq!(many(&server, 4).await, "rrM.");
    later(&server, 3_600).await;
    assert_eq!(many(&server, 2).await, "M.");
    // That was no more than the threshold.
    later(&server, 3_600).await;
    assert_eq!(many(&server, 4).await, "rrM.");
    // A whole window has gone by.
    later(&server, 7_200).await;
    assert_eq!(many(&server, 4).await, "rrM.");
    // The limits are those of now, and a rule without any has none.
    let change = pb::AlertRule { id: rule.id, ..Default::default() };
    update(&server, change.clone(), &["flap_threshold", "flap_window"]).await.unwrap();
    assert_eq!(many(&server, 3).await, "rrr");
    server.stop().await;
}

#[on_both]
async fn a_retry_is_told_the_same(backend: Backend) {
    let (server, _) = ready(backend, flaps(1, 3_600)).await;
    let (_, standing) = {
        many(&server, 1).await;
        one(&server, "dog").await
    };
    let request = pb::IngestEventRequest { request_id: "one".into(), ..ingest("door", vec![]) };
    let first = server.events().ingest_event(request.clone()).await.unwrap().into_inner();
    let again = server.events().ingest_event(request).await.unwrap().into_inner();
    assert_eq!(again.rule_outcomes[0].stopped_by(), RuleStop::Flapping);
    assert_eq!(again.rule_outcomes[0].alert_id, Some(standing));
    assert_eq!(again.rule_outcomes[0].alert_id, first.rule_outcomes[0].alert_id);
    server.stop().await;
}

#[on_both]
async fn the_cooldown_is_asked_first_and_runs_for_what_is_held_back(backend: Backend) {
    let rule =
        pb::AlertRule { cooldown: seconds(600), dedup_key_template: Some("{object_type}".into()), ..flaps(2, 3_600) };
    let (server, _) = ready(backend, rule).await;
    let told = async |types: &[&str]| {
        let mut told = Vec::new();
        for object_type in types {
            told.push(one(&server, object_type).await);
        }
        told
    };
    // Repeats of a key in its cooldown are not counted.
    let first = told(&["a", "a", "a", "b", "b", "c", "c"]).await;
    let kinds: String = first.iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, "rccrcMc");
    let standing = &first[5].1;
    // What is held back begins its cooldown, in which the alert that says so stands for it.
    let held = told(&["d", "d", "e", "d", "e"]).await;
    let kinds: String = held.iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ".c.cc");
    assert!(held.iter().all(|(_, alert)| alert == standing), "{held:?} {standing}");
    let get = pb::GetAlertRequest { id: standing.clone() };
    let standing_alert = server.alerts().get_alert(get).await.unwrap().into_inner();
    // Repeats of its own key, and of those that it stands for.
    assert!(says_so(&standing_alert) && standing_alert.suppressed_count == 4, "{standing_alert:?}");
    later(&server, 600).await;
    assert_eq!(one(&server, "d").await, ('.', standing.clone()));
    server.stop().await;
}

#[on_both]
async fn rules_can_be_deleted_while_they_flap(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    for round in 0..10 {
        let rule = server.rule(flaps(2, 3_600)).await;
        let ingests = (0..16).map(|_| {
            let mut events = EventServiceClient::new(server.channel.clone());
            tokio::spawn(async move { events.ingest_event(ingest("door", vec![])).await })
        });
        let ingests: Vec<_> = ingests.collect();
        let request = pb::DeleteAlertRuleRequest { id: rule.id, ..Default::default() };
        server.rules().delete_alert_rule(request).await.unwrap_or_else(|error| panic!("{round}: {error}"));
        for ingest in ingests {
            ingest.await.unwrap().unwrap_or_else(|error| panic!("{round}: {error}"));
        }
    }
    server.stop().await;
}

#[on_both]
async fn many_clients_at_once_raise_exactly_so_many(backend: Backend) {
    let (server, _) = ready(backend, flaps(5, 86_400)).await;
    let rule =
        pb::AlertRule { cooldown: seconds(3_600), dedup_key_template: Some("{event_id}".into()), ..flaps(7, 86_400) };
    server.rule(rule).await;
    counted(&at_once(std::slice::from_ref(&server.channel), 64).await, &[5, 7]);
    server.stop().await;
}

/// Ingests `count` events at once, by the channels in turn.
async fn at_once(channels: &[Channel], count: usize) -> Vec<pb::IngestEventResponse> {
    let sent: Vec<_> = (0..count)
        .map(|n| {
            let mut events = EventServiceClient::new(channels[n % channels.len()].clone());
            tokio::spawn(async move { events.ingest_event(ingest("door", vec![])).await })
        })
        .collect();
    let mut responses = Vec::new();
    for reply in sent {
        responses.push(reply.await.unwrap().unwrap().into_inner());
    }
    responses
}

/// That each of the rules raised as many alerts as it may, one that says so, and held back the rest.
fn counted(responses: &[pb::IngestEventResponse], thresholds: &[usize]) {
    let alerts: Vec<_> = responses.iter().flat_map(|response| &response.alerts).collect();
    for (rule, threshold) in thresholds.iter().enumerate() {
        let outcomes: Vec<_> = responses.iter().map(|response| &response.rule_outcomes[rule]).collect();
        let of_rule = alerts.iter().filter(|alert| alert.rule_id.as_ref() == Some(&outcomes[0].rule_id));
        let (marked, plain): (Vec<&pb::Alert>, Vec<&pb::Alert>) = of_rule.copied().partition(|alert| says_so(alert));
        assert_eq!((plain.len(), marked.len()), (*threshold, 1));
        let held: Vec<_> = outcomes.iter().filter(|outcome| !outcome.fired).collect();
        assert_eq!(held.len(), responses.len() - threshold - 1);
        assert!(held.iter().all(|outcome| outcome.stopped_by() == RuleStop::Flapping));
        let standing: HashSet<_> = held.iter().filter_map(|outcome| outcome.alert_id.clone()).collect();
        assert_eq!(standing, HashSet::from([marked[0].id.clone()]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_on_one_database_count_together() {
    let (server, _) = ready(Backend::Postgres, flaps(5, 86_400)).await;
    let rule =
        pb::AlertRule { cooldown: seconds(3_600), dedup_key_template: Some("{event_id}".into()), ..flaps(11, 86_400) };
    server.rule(rule).await;
    let other = start(server.database.url(), |_| {}).await;
    let channel = connect(&format!("http://{}", other.address)).await;
    let responses = at_once(&[server.channel.clone(), channel], 128).await;
    counted(&responses, &[5, 11]);
    assert!(other.stop().await);
    server.stop().await;
}
