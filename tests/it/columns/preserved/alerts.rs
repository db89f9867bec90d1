//! What happens to alerts, to their deliveries, and to channels by what receivers answer.

use watchpost::pb;

use super::Observed;
use crate::{
    columns::{
        filled::{self, row_exists},
        stored::Stored,
    },
    support::{
        TestServer, always,
        calls::{execute, strings},
        database::{Backend, on_both},
        receiver::{Answer, Receiver},
    },
};

const BEFORE: &str = "'2025-05-06T07:08:09+00:00'";

/// A server with an alert whose delivery waits, because its channel is disabled.
async fn raised(backend: Backend) -> (TestServer, Receiver, String) {
    let server = filled::started(backend).await;
    server.camera("porch").await;
    let receiver = Receiver::start().await;
    let channel = pb::NotificationChannel { enabled: Some(false), ..filled::channel("ops", receiver.url()) };
    server.notification_channel(channel).await;
    let rule =
        pb::AlertRule { channels: strings(&["ops"]), severity: pb::Severity::High.into(), ..always("everything") };
    server.rule(filled::with_cooldown(rule, 3_600, None)).await;
    let alert = server.ingest("porch", vec![]).await.alerts.remove(0);
    (server, receiver, alert.id)
}

async fn enable(server: &TestServer, enabled: bool) {
    let sql = format!("UPDATE notification_channels SET enabled = {enabled}, throttled_until = NULL");
    execute(server, &sql).await;
}

async fn acknowledge(server: &TestServer, id: &str) {
    let request = pb::AcknowledgeAlertRequest { id: id.into(), actor: "ann".into(), ..Default::default() };
    server.alerts().acknowledge_alert(request).await.unwrap();
}

#[on_both]
async fn what_happens_to_an_alert_changes_only_its_columns(backend: Backend) {
    let (server, _receiver, id) = raised(backend).await;
    let stored = Stored::open(backend, &server).await;
    let mut alert = Observed::only(backend, &stored, "alerts").await;
    alert.mark(&["last_suppressed_at"]).await;
    let repeat = server.ingest("porch", vec![]);
    alert.run("a repeat", &["suppressed_count", "last_suppressed_at"], repeat).await;
    let delivered = async {
        enable(&server, true).await;
        row_exists(&server, "SELECT 1 FROM deliveries WHERE status = 'delivered'").await;
    };
    alert.run("a delivery", &["status", "delivered_at", "updated_at", "version_id"], delivered).await;
    let columns = ["status", "acknowledged_at", "acknowledged_by", "updated_at", "version_id"];
    alert.run("AcknowledgeAlert", &columns, acknowledge(&server, &id)).await;
    let columns = ["status", "dismissed_at", "dismissed_by", "updated_at", "version_id"];
    let request = pb::DismissAlertRequest { id: id.clone(), actor: "bob".into(), ..Default::default() };
    let mut alerts = server.alerts();
    alert.run("DismissAlert", &columns, alerts.dismiss_alert(request)).await;
    alert.finish(&["event_id", "rule_id", "severity", "created_at", "channels", "dedup_key", "metadata", "camera_id"]);
    stored.db.close().await.unwrap();
}

#[on_both]
async fn what_happens_to_a_delivery_changes_only_its_columns(backend: Backend) {
    let (server, receiver, id) = raised(backend).await;
    let stored = Stored::open(backend, &server).await;
    let mut delivery = Observed::only(backend, &stored, "deliveries").await;
    let mut channel = Observed::only(backend, &stored, "notification_channels").await;
    delivery.mark(&["status"]).await;
    let waiting = ("next_attempt_at", "'2031-05-06T07:08:09+00:00'");
    let lease = match backend {
        Backend::Sqlite => "x'018f2f5e7a007000800000000000000c'",
        Backend::Postgres => "'018f2f5e7a007000800000000000000c'",
    };
    let leased = ("lease_id", lease);
    let cancelled = ["status", "next_attempt_at", "lease_id", "updated_at"];
    delivery.set(&[waiting, leased]).await;
    delivery.run("AcknowledgeAlert", &cancelled, acknowledge(&server, &id)).await;
    let request = pb::ListDeliveriesRequest::default();
    let list = server.deliveries().list_deliveries(request).await.unwrap().into_inner();
    let request = pb::RetryDeliveryRequest { id: list.deliveries[0].id.clone() };
    let mut deliveries = server.deliveries();
    delivery.set(&[waiting, leased]).await;
    let retried = ["status", "failures", "next_attempt_at", "lease_id", "updated_at"];
    delivery.run("RetryDelivery", &retried, deliveries.retry_delivery(request)).await;

    let attempt =
        ["attempts", "next_attempt_at", "last_attempt_at", "lease_id", "last_error", "last_status_code", "updated_at"];
    let due = [
        ("status", "'queued'"),
        ("next_attempt_at", BEFORE),
        leased,
        ("last_error", "'old'"),
        ("last_status_code", "599"),
        ("failures", "2"),
    ];
    let answered = async |answer, condition: &str| {
        receiver.answer(answer);
        enable(&server, true).await;
        row_exists(&server, &format!("SELECT 1 FROM deliveries WHERE {condition}")).await;
        enable(&server, false).await;
    };
    delivery.set(&due).await;
    delivery.set(&[("failures", "1000")]).await;
    let dead = answered(Answer::Status(400, vec![]), "status = 'dead'");
    delivery.run("the last attempt", &[&attempt[..], &["status", "failures"]].concat(), dead).await;
    delivery.set(&due).await;
    let later = answered(Answer::Status(500, vec![]), "last_status_code = 500");
    delivery.run("an attempt that fails", &[&attempt[..], &["failures"]].concat(), later).await;
    // Of a replay the first time of delivery stays.
    delivery.set(&due).await;
    let again = answered(Answer::Status(204, vec![]), "status = 'delivered'");
    delivery.run("a repeated delivery", &[&attempt[..], &["status"]].concat(), again).await;
    delivery.set(&due).await;
    delivery.set(&[("delivered_at", "NULL")]).await;
    let done = answered(Answer::Status(204, vec![]), "status = 'delivered'");
    delivery.run("a delivery", &[&attempt[..], &["status", "delivered_at"]].concat(), done).await;

    delivery.set(&due).await;
    channel.mark(&["enabled", "throttled_until"]).await;
    let throttled = async {
        receiver.answer(Answer::Status(429, vec![("retry-after", "3600".into())]));
        enable(&server, true).await;
        row_exists(&server, "SELECT 1 FROM notification_channels WHERE throttled_until IS NOT NULL").await;
    };
    channel.run("a receiver that wants less", &["enabled", "throttled_until"], throttled).await;
    enable(&server, true).await;
    receiver.answer(Answer::Status(410, vec![]));
    let gone = async {
        delivery.set(&due).await;
        row_exists(&server, "SELECT 1 FROM notification_channels WHERE NOT enabled").await;
    };
    channel.run("a receiver that is gone", &["enabled", "disabled_reason", "updated_at", "version_id"], gone).await;
    assert_eq!(channel.problems, Vec::<String>::new());
    delivery.finish(&["alert_id", "channel_id", "channel_name", "escalation_step", "severity", "created_at"]);
    stored.db.close().await.unwrap();
}
