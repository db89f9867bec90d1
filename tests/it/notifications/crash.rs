//! A server that is killed while it delivers.

use std::collections::HashSet;

use tonic::transport::Channel;
use watchpost::pb::{
    self, DeliveryStatus, alert_rule_service_client::AlertRuleServiceClient,
    delivery_service_client::DeliveryServiceClient, event_service_client::EventServiceClient,
    notification_channel_service_client::NotificationChannelServiceClient,
};

use super::{telling, webhook};
use crate::support::{
    calls::create_camera,
    database::{Backend, TestDatabase, on_both},
    eventually_some, ingest,
    process::Process,
    receiver::{Received, Receiver},
};

/// How often the server is killed.
const KILLS: usize = 4;

/// How many alerts are raised before each kill.
const ALERTS: usize = 60;

async fn start(database: &TestDatabase) -> Process {
    let mut process = Process::spawn(&[
        "--database-url",
        database.url(),
        "--listen",
        "127.0.0.1:0",
        "--notification-networks",
        "127.0.0.0/8",
        "--secret-key-file",
        concat!(env!("CARGO_TARGET_TMPDIR"), "/secret.key"),
        "--nvml-library",
        "/no/such/libnvidia-ml.so.1",
    ]);
    let line = process.says("listening on ").await;
    let (_, address) = line.split_once("listening on ").unwrap();
    process.address = format!("http://{address}");
    process
}

async fn prepare(channel: &Channel, url: String) {
    create_camera(channel, "door").await;
    let hook = pb::WebhookChannel {
        timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        url,
        signing_secrets: vec![super::SECRET.into()],
        ..Default::default()
    };
    let hook = pb::NotificationChannel {
        kind: Some(pb::notification_channel::Kind::Webhook(hook)),
        ..webhook("ops", String::new())
    };
    let request = pb::CreateNotificationChannelRequest { notification_channel: Some(hook) };
    let mut channels = NotificationChannelServiceClient::new(channel.clone());
    channels.create_notification_channel(request).await.unwrap();
    let request = pb::CreateAlertRuleRequest { alert_rule: Some(telling(&["ops"])) };
    AlertRuleServiceClient::new(channel.clone()).create_alert_rule(request).await.unwrap();
}

#[on_both]
async fn a_server_that_is_killed_while_it_delivers_forgets_nothing(backend: Backend) {
    let receiver = Receiver::start().await;
    let database = TestDatabase::migrated(backend).await;
    let mut alerts = HashSet::new();
    for kill in 0..KILLS {
        let server = start(&database).await;
        let channel = server.serving().await;
        if kill == 0 {
            prepare(&channel, receiver.url()).await;
        }
        for _ in 0..ALERTS {
            let mut events = EventServiceClient::new(channel.clone());
            let answer = events.ingest_event(ingest("door", vec![])).await.unwrap().into_inner();
            alerts.insert(answer.alerts[0].id.clone());
        }
        server.kill().await;
    }
    let server = start(&database).await;
    let channel = server.serving().await;
    let mut deliveries = DeliveryServiceClient::new(channel);
    let mut list = async || {
        let request = pb::ListDeliveriesRequest { page_size: 1_000, ..Default::default() };
        deliveries.list_deliveries(request).await.unwrap().into_inner().deliveries
    };
    // The lease of a killed server ends first.
    let delivered = eventually_some("all is delivered", async || {
        let deliveries = list().await;
        deliveries.iter().all(|one| one.status() == DeliveryStatus::Delivered).then_some(deliveries)
    })
    .await;
    assert_eq!(delivered.len(), alerts.len());
    let posts = receiver.received();
    let ids: HashSet<_> = posts.iter().map(|one| one.header("webhook-id").to_string()).collect();
    assert_eq!(ids, delivered.iter().map(|one| one.id.clone()).collect(), "every delivery, by its own id");
    let told: HashSet<_> = posts.iter().map(Received::alert_id).collect();
    assert_eq!(told, alerts);
    let pairs: HashSet<_> = posts.iter().map(|one| (one.header("webhook-id").to_string(), one.alert_id())).collect();
    assert_eq!(pairs.len(), alerts.len(), "an alert has one id, however often it comes");
    server.kill().await;
}
