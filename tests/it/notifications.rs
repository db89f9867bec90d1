//! `NotificationChannelService`, `DeliveryService`, and what is delivered.

mod bad_input;
mod channels;
mod crash;
mod escalation;
mod failures;
mod keys;
mod outbox;
mod quiet;
mod secrets;
mod webhooks;

use std::time::Duration;

use watchpost::pb::{self, DeliveryStatus, notification_channel::Kind};

use crate::support::{
    TestServer, always,
    database::{Backend, TestDatabase},
    eventually_ok,
    receiver::Receiver,
};

/// A secret of 24 bytes, all of them 1.
const SECRET: &str = "whsec_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";

/// A server with a camera, which may send to loopback, and tries again soon.
async fn ready(backend: Backend) -> TestServer {
    let database = TestDatabase::migrated(backend).await;
    let server = TestServer::start_with(database, |settings| {
        settings.notification_networks = vec!["127.0.0.0/8".parse().unwrap()];
        settings.notification_retry = Duration::from_millis(20);
    })
    .await;
    server.camera("door").await;
    server
}

/// A webhook that posts there.
pub(crate) fn webhook(name: &str, url: String) -> pb::NotificationChannel {
    pb::NotificationChannel {
        name: name.into(),
        kind: Some(Kind::Webhook(pb::WebhookChannel {
            url,
            signing_secrets: vec![SECRET.into()],
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// A rule that always fires and tells these channels.
fn telling(channels: &[&str]) -> pb::AlertRule {
    pb::AlertRule { channels: channels.iter().map(ToString::to_string).collect(), ..always("everything") }
}

/// A server with a channel `ops` to a receiver, and a rule that tells it of everything.
async fn with_ops(backend: Backend) -> (TestServer, Receiver, pb::NotificationChannel) {
    let server = ready(backend).await;
    let receiver = Receiver::start().await;
    let channel = server.notification_channel(webhook("ops", receiver.url())).await;
    server.rule(telling(&["ops"])).await;
    (server, receiver, channel)
}

/// Raises an alert.
async fn raise(server: &TestServer) -> pb::Alert {
    server.ingest("door", vec![]).await.alerts.remove(0)
}

async fn list(server: &TestServer, filter: pb::DeliveryFilter) -> Vec<pb::Delivery> {
    let request = pb::ListDeliveriesRequest { page_size: 1_000, filter: Some(filter), ..Default::default() };
    let reply = server.deliveries().list_deliveries(request).await;
    reply.unwrap().into_inner().deliveries
}

/// The deliveries of an alert, by step and channel.
async fn of_alert(server: &TestServer, alert_id: &str) -> Vec<pb::Delivery> {
    let filter = pb::DeliveryFilter { alert_ids: vec![alert_id.into()], ..Default::default() };
    let mut deliveries = list(server, filter).await;
    deliveries.sort_by_key(|one| (one.escalation_step, one.channel_name.clone()));
    deliveries
}

/// Waits until the only delivery of an alert is as it should be, and gives it.
async fn delivery_when(server: &TestServer, alert_id: &str, is_so: impl Fn(&pb::Delivery) -> bool) -> pb::Delivery {
    eventually_ok("the delivery is as it should be", async || {
        let deliveries = of_alert(server, alert_id).await;
        let [delivery] = &deliveries[..] else {
            panic!("not one delivery: {deliveries:?}");
        };
        if is_so(delivery) { Ok(delivery.clone()) } else { Err(format!("{delivery:?}")) }
    })
    .await
}

/// Waits until the only delivery of an alert has this status.
async fn becomes(server: &TestServer, alert_id: &str, status: DeliveryStatus) -> pb::Delivery {
    delivery_when(server, alert_id, |delivery| delivery.status() == status).await
}

async fn get_alert(server: &TestServer, id: &str) -> pb::Alert {
    let request = pb::GetAlertRequest { id: id.into() };
    server.alerts().get_alert(request).await.unwrap().into_inner()
}

async fn get_channel(server: &TestServer, id: &str) -> pb::NotificationChannel {
    let request = pb::GetNotificationChannelRequest { id: id.into() };
    let reply = server.channels().get_notification_channel(request).await;
    reply.unwrap().into_inner()
}

async fn acknowledge(server: &TestServer, id: &str) {
    let request = pb::AcknowledgeAlertRequest { id: id.into(), ..Default::default() };
    server.alerts().acknowledge_alert(request).await.unwrap();
}
