//! Cooldowns: of many matches with one key, one raises an alert.

use std::collections::HashSet;

use tonic::transport::Channel;
use watchpost::pb::{self, RuleStop, event_service_client::EventServiceClient};

use super::update;
use crate::support::{
    TestServer, always,
    calls::{at, execute, seconds},
    connect,
    database::{Backend, on_both},
    detection, ingest, start,
};

fn once(name: &str) -> pb::AlertRule {
    pb::AlertRule { cooldown: seconds(3600), ..always(name) }
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

/// That one of the events raised the alert that stands for all of them.
fn raised_once(responses: &[pb::IngestEventResponse], rule: usize) {
    let raised: Vec<_> = responses.iter().filter(|response| response.rule_outcomes[rule].fired).collect();
    assert_eq!(raised.len(), 1);
    let standing = raised[0].rule_outcomes[rule].alert_id.clone();
    assert!(standing.is_some());
    for response in responses {
        let outcome = &response.rule_outcomes[rule];
        assert_eq!(outcome.alert_id, standing);
        let stopped_by = if outcome.fired { RuleStop::Unspecified } else { RuleStop::Cooldown };
        assert_eq!(outcome.stopped_by(), stopped_by);
    }
}

#[on_both]
async fn many_events_at_once_raise_one_alert_for_one_key(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(once("a")).await;
    server.rule(always("every")).await;
    server.rule(once("b")).await;
    let responses = at_once(std::slice::from_ref(&server.channel), 64).await;
    raised_once(&responses, 0);
    raised_once(&responses, 2);
    let every: HashSet<_> =
        responses.iter().map(|response| response.rule_outcomes[1].alert_id.clone().unwrap()).collect();
    assert_eq!(every.len(), 64);
    let request = pb::ListAlertsRequest { page_size: 1000, ..Default::default() };
    let alerts = server.alerts().list_alerts(request).await.unwrap().into_inner().alerts;
    assert_eq!(alerts.len(), 66);
    let told: HashSet<_> = responses.into_iter().flat_map(|response| response.alerts).map(|alert| alert.id).collect();
    assert_eq!(alerts.into_iter().map(|alert| alert.id).collect::<HashSet<_>>(), told);
    server.stop().await;
}

#[on_both]
async fn keys_cool_down_apart(backend: Backend) {
    let server = TestServer::start(backend).await;
    for id in ["door", "gate"] {
        server.camera(id).await;
    }
    server.rule(pb::AlertRule { dedup_key_template: Some("{camera_id}:{object_type}".into()), ..once("r") }).await;
    let raised = async |camera: &str, object_type: &str| server.ingest(camera, vec![detection(object_type, 1.0)]).await;
    let first = raised("door", "dog").await;
    for (camera, object_type, expected) in
        [("door", "DOG", 0), ("door", "cat", 1), ("gate", "dog", 1), ("door", "dog", 0), ("gate", "cat", 1)]
    {
        assert_eq!(raised(camera, object_type).await.alerts.len(), expected, "{camera} {object_type}");
    }
    let outcome = raised("door", "dog").await.rule_outcomes.remove(0);
    assert_eq!(outcome.alert_id.as_deref(), Some(&*first.alerts[0].id));
    assert_eq!(outcome.detail, "door:dog is in its cooldown of 3600 s");
    server.stop().await;
}

#[on_both]
async fn a_cooldown_ends_when_its_time_is_over(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let rule = server.rule(once("r")).await;
    let ingest = async || server.ingest("door", vec![]).await;
    let first = ingest().await;
    assert_eq!((first.alerts.len(), ingest().await.alerts.len()), (1, 0));
    // As if an hour had gone by, but for the time of this test.
    execute(&server, "UPDATE alert_cooldowns SET raised_at_us = raised_at_us - 3599000000").await;
    let near = ingest().await;
    assert_eq!(near.rule_outcomes[0].alert_id, first.rule_outcomes[0].alert_id);
    execute(&server, "UPDATE alert_cooldowns SET raised_at_us = raised_at_us - 1000000").await;
    let second = ingest().await;
    assert_eq!(second.alerts.len(), 1);
    let third = ingest().await;
    assert_eq!((third.alerts.len(), &third.rule_outcomes[0].alert_id), (0, &second.rule_outcomes[0].alert_id));

    // The rule's cooldown is the one of now, not of then.
    let change = pb::AlertRule { id: rule.id, cooldown: seconds(0), ..Default::default() };
    update(&server, change.clone(), &[]).await.unwrap();
    assert_eq!((ingest().await.alerts.len(), ingest().await.alerts.len()), (1, 1));
    server.stop().await;
}

#[on_both]
async fn a_snoozed_or_failed_event_does_not_start_a_cooldown(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(once("r")).await;
    let mut snoozed = ingest("door", vec![]);
    snoozed.event.as_mut().unwrap().snooze_until = at(253_402_300_799);
    let response = server.events().ingest_event(snoozed).await.unwrap().into_inner();
    assert_eq!(response.rule_outcomes[0].stopped_by(), RuleStop::Snoozed);
    server.events().ingest_event(ingest("none", vec![])).await.unwrap_err();
    let first = server.ingest("door", vec![]).await;
    assert_eq!(first.alerts.len(), 1);
    // A dismissed alert still stands.
    let dismiss = pb::DismissAlertRequest { id: first.alerts[0].id.clone(), ..Default::default() };
    server.alerts().dismiss_alert(dismiss).await.unwrap();
    assert_eq!(server.ingest("door", vec![]).await.alerts, []);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_on_one_database_raise_one_alert_for_one_key() {
    let server = TestServer::start(Backend::Postgres).await;
    server.camera("door").await;
    server.rule(once("r")).await;
    let other = start(server.database.url(), |_| {}).await;
    let channel = connect(&format!("http://{}", other.address)).await;
    let responses = at_once(&[server.channel.clone(), channel], 64).await;
    raised_once(&responses, 0);
    assert!(other.stop().await);
    server.stop().await;
}
