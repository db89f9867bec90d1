//! Repeats that a cooldown holds back are counted on the alert that stands for them.

use tonic::transport::Channel;
use watchpost::pb::{self, Topic, alert_service_client::AlertServiceClient, event_service_client::EventServiceClient};

use super::{Acknowledged, Dismissed, advance, get, list};
use crate::support::{
    TestServer, always,
    calls::{execute, seconds},
    connect,
    database::{Backend, on_both},
    detection, ingest, start, topics,
};

fn once(name: &str) -> pb::AlertRule {
    pb::AlertRule { cooldown: seconds(3600), ..always(name) }
}

/// Ingests `count` events with one key, by the channels in turn, from as many clients as there are events.
async fn at_once(channels: &[Channel], count: usize) {
    let sent: Vec<_> = (0..count)
        .map(|n| {
            let mut events = EventServiceClient::new(channels[n % channels.len()].clone());
            tokio::spawn(async move { events.ingest_event(ingest("door", vec![])).await })
        })
        .collect();
    for reply in sent {
        reply.await.unwrap().unwrap();
    }
}

/// That of `wanted` matches each raised an alert or is counted on one.
async fn adds_up(server: &TestServer, alerts: usize, wanted: usize) {
    let found = list(server, pb::AlertFilter::default()).await;
    let suppressed: i64 = found.iter().map(|alert| alert.suppressed_count).sum();
    assert_eq!(found.len(), alerts);
    assert_eq!(found.len() + usize::try_from(suppressed).unwrap(), wanted);
    for alert in found {
        assert_eq!(alert.last_suppressed_at.is_some(), alert.suppressed_count > 0, "{alert:?}");
    }
}

#[on_both]
async fn every_event_raises_an_alert_or_is_counted_on_one(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(once("r")).await;
    let channels = std::slice::from_ref(&server.channel);
    at_once(channels, 100).await;
    adds_up(&server, 1, 100).await;
    // As if the cooldown were over.
    execute(&server, "UPDATE alert_cooldowns SET raised_at_us = raised_at_us - 3600000000").await;
    at_once(channels, 100).await;
    adds_up(&server, 2, 200).await;
    server.stop().await;
}

#[on_both]
async fn every_event_is_counted_across_ends_of_a_cooldown(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(pb::AlertRule { cooldown: seconds(1), ..always("r") }).await;
    let mut sent = 0;
    let raised = loop {
        at_once(std::slice::from_ref(&server.channel), 20).await;
        sent += 20;
        let raised = list(&server, pb::AlertFilter::default()).await.len();
        if raised > 2 {
            break raised;
        }
    };
    adds_up(&server, raised, sent).await;
    server.stop().await;
}

#[on_both]
async fn a_repeat_changes_nothing_else_and_is_not_announced(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(once("r")).await;
    let raised = server.ingest("door", vec![]).await.alerts.remove(0);
    assert_eq!((raised.suppressed_count, raised.last_suppressed_at), (0, None));
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    for _ in 0..2 {
        assert_eq!(server.ingest("door", vec![]).await.alerts, []);
    }
    let counted = get(&server, &raised.id).await.unwrap().into_inner();
    assert!(counted.last_suppressed_at.is_some());
    let last_suppressed_at = counted.last_suppressed_at;
    assert_eq!(counted, pb::Alert { suppressed_count: 2, last_suppressed_at, ..raised.clone() });
    // Whoever saw the alert before may still move it, and the next change tells the number.
    let moved = advance(&server, &raised.id, Acknowledged, Some(1)).await.unwrap().into_inner();
    assert_eq!(moved.suppressed_count, 2);
    assert_eq!(watch.alert().await.1, moved);
    // It stands whatever its status.
    advance(&server, &raised.id, Dismissed, None).await.unwrap();
    server.ingest("door", vec![]).await;
    assert_eq!(get(&server, &raised.id).await.unwrap().into_inner().suppressed_count, 3);
    server.stop().await;
}

#[on_both]
async fn repeats_of_many_alerts_are_counted_together_each_on_its_own(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    for name in ["a", "b"] {
        server.rule(pb::AlertRule { dedup_key_template: Some("{object_type}".into()), ..once(name) }).await;
    }
    let sent: Vec<_> = (0..60)
        .map(|n| {
            let mut events = server.events();
            let seen = detection(&format!("type{}", n % 6), 1.0);
            tokio::spawn(async move { events.ingest_event(ingest("door", vec![seen])).await })
        })
        .collect();
    for reply in sent {
        reply.await.unwrap().unwrap();
    }
    adds_up(&server, 12, 120).await;
    for alert in list(&server, pb::AlertFilter::default()).await {
        assert_eq!(alert.suppressed_count, 9, "{alert:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_are_counted_exactly_across_servers_while_the_alert_is_moved() {
    let server = TestServer::start(Backend::Postgres).await;
    server.camera("door").await;
    server.rule(once("r")).await;
    let raised = server.ingest("door", vec![]).await.alerts.remove(0);
    let other = start(server.database.url(), |_| {}).await;
    let channel = connect(&format!("http://{}", other.address)).await;
    let mut alerts = AlertServiceClient::new(channel.clone());
    let moves = tokio::spawn(async move {
        let id = raised.id;
        let acknowledge = pb::AcknowledgeAlertRequest { id: id.clone(), ..Default::default() };
        alerts.acknowledge_alert(acknowledge).await.unwrap();
        let dismiss = pb::DismissAlertsRequest {
            filter: Some(pb::AlertFilter { open: Some(false), ..Default::default() }),
            ..Default::default()
        };
        alerts.dismiss_alerts(dismiss).await.unwrap().into_inner()
    });
    at_once(&[server.channel.clone(), channel], 199).await;
    assert_eq!(moves.await.unwrap().moved, 1);
    adds_up(&server, 1, 200).await;
    assert!(other.stop().await);
    server.stop().await;
}
