//! Channels that are refused, by the field that is wrong.

use prost_types::Duration;
use watchpost::pb::{self, notification_channel::Kind};

use super::{SECRET, ready};
use crate::support::{
    calls::{refused, rows, strings},
    database::{Backend, on_both},
};

fn webhook(change: impl FnOnce(&mut pb::WebhookChannel)) -> pb::NotificationChannel {
    let mut webhook = pb::WebhookChannel {
        url: "https://example.com/hook".into(),
        signing_secrets: strings(&[SECRET]),
        ..Default::default()
    };
    change(&mut webhook);
    pb::NotificationChannel { name: "ops".into(), kind: Some(Kind::Webhook(webhook)), ..Default::default() }
}

fn email(change: impl FnOnce(&mut pb::EmailChannel)) -> pb::NotificationChannel {
    let mut email = pb::EmailChannel {
        host: "mail.example.com".into(),
        from_address: "a@example.com".into(),
        to_addresses: strings(&["b@example.com"]),
        ..Default::default()
    };
    change(&mut email);
    pb::NotificationChannel { name: "ops".into(), kind: Some(Kind::Email(email)), ..Default::default() }
}

#[expect(clippy::unnecessary_wraps, reason = "a field that may be absent")]
fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

#[on_both]
async fn a_channel_with_a_bad_field_is_refused_by_its_name(backend: Backend) {
    let server = ready(backend).await;
    let many = |count: usize, text: &str| vec![text.to_string(); count];
    let mut cases = vec![
        (pb::NotificationChannel { name: String::new(), ..webhook(|_| {}) }, "name"),
        (pb::NotificationChannel { name: " ".into(), ..webhook(|_| {}) }, "name"),
        (pb::NotificationChannel { name: "n".repeat(101), ..webhook(|_| {}) }, "name"),
        (pb::NotificationChannel { kind: None, ..webhook(|_| {}) }, "webhook"),
        (pb::NotificationChannel { description: Some("\0".into()), ..webhook(|_| {}) }, "description"),
        (pb::NotificationChannel { quiet_except: 9, ..webhook(|_| {}) }, "quiet_except"),
        (pb::NotificationChannel { quiet_times: vec![pb::Schedule::default(); 21], ..webhook(|_| {}) }, "quiet_times"),
        (
            pb::NotificationChannel {
                quiet_times: vec![pb::Schedule { time_zone: "Mars/North".into(), ..Default::default() }],
                ..webhook(|_| {})
            },
            "quiet_times[0].time_zone",
        ),
        (webhook(|hook| hook.signing_secrets = vec![]), "webhook.signing_secrets"),
        (webhook(|hook| hook.signing_secrets = many(6, SECRET)), "webhook.signing_secrets"),
        (webhook(|hook| hook.signing_secrets.push("hunter2".into())), "webhook.signing_secrets[1]"),
        (webhook(|hook| hook.signing_secrets.push(String::new())), "webhook.signing_secrets[1]"),
        (webhook(|hook| hook.timeout = seconds(0)), "webhook.timeout"),
        (webhook(|hook| hook.timeout = seconds(31)), "webhook.timeout"),
        (webhook(|hook| hook.timeout = seconds(-1)), "webhook.timeout"),
        (
            webhook(|hook| hook.headers = (0..21).map(|n| (format!("x-{n}"), String::new())).collect()),
            "webhook.headers",
        ),
        (
            webhook(|hook| hook.headers = [("X".into(), "1".into()), ("x".into(), "2".into())].into()),
            "webhook.headers[x]",
        ),
        (email(|mail| mail.host = String::new()), "email.host"),
        (email(|mail| mail.host = "mail.example.com:25".into()), "email.host"),
        (email(|mail| mail.host = "a b".into()), "email.host"),
        (email(|mail| mail.host = "10.0.0.1".into()), "email.host"),
        (email(|mail| mail.host = "::1".into()), "email.host"),
        (email(|mail| mail.port = -1), "email.port"),
        (email(|mail| mail.port = 65_536), "email.port"),
        (email(|mail| mail.security = 9), "email.security"),
        (email(|mail| mail.username = Some("u".into())), "email.password"),
        (email(|mail| mail.password = "p".into()), "email.username"),
        (email(|mail| mail.from_address = String::new()), "email.from_address"),
        (email(|mail| mail.from_address = "nobody".into()), "email.from_address"),
        (email(|mail| mail.from_address = "a@example.com\r\nBcc: c@example.com".into()), "email.from_address"),
        (email(|mail| mail.to_addresses = vec![]), "email.to_addresses"),
        (email(|mail| mail.to_addresses = many(51, "b@example.com")), "email.to_addresses"),
        (email(|mail| mail.to_addresses.push("@".into())), "email.to_addresses[1]"),
        (email(|mail| mail.timeout = seconds(61)), "email.timeout"),
    ];
    for url in [
        "",
        "example.com",
        "ftp://example.com",
        "https://",
        "https://user@example.com",
        "https://:pass@example.com",
        "file:///etc/passwd",
        "http://10.0.0.1",
        "http://[::1]/",
        "http://169.254.169.254/latest",
        "http://0/",
        "http://192.168.1.1:8080/x",
        "http://[::ffff:10.0.0.1]/",
    ] {
        cases.push((webhook(|hook| hook.url = url.into()), "webhook.url"));
    }
    for (name, value) in [
        ("Content-Type", "x"),
        ("webhook-id", "x"),
        ("Host", "x"),
        ("a b", "x"),
        ("", "x"),
        ("x", "a\r\nb: c"),
        ("x", "\0"),
    ] {
        let channel = webhook(|hook| hook.headers = [(name.to_string(), value.to_string())].into());
        let path: &'static str = Box::leak(format!("webhook.headers[{name}]").into_boxed_str());
        cases.push((channel, path));
    }
    let before = rows(&server).await;
    for (channel, path) in cases {
        let request = pb::CreateNotificationChannelRequest { notification_channel: Some(channel) };
        let reply = server.channels().create_notification_channel(request).await;
        if let Err(status) = &reply {
            assert!(!status.message().contains("hunter2"), "{}", status.message());
        }
        refused(reply, &format!("notification_channel.{path}"));
    }
    let request = pb::CreateNotificationChannelRequest::default();
    refused(server.channels().create_notification_channel(request).await, "notification_channel");
    assert_eq!(rows(&server).await, before, "nothing is stored");
    server.stop().await;
}

#[on_both]
async fn bad_questions_about_deliveries_are_refused(backend: Backend) {
    let server = ready(backend).await;
    let mut deliveries = server.deliveries();
    let list = |filter| pb::ListDeliveriesRequest { filter: Some(filter), ..Default::default() };
    for (filter, path) in [
        (pb::DeliveryFilter { alert_ids: strings(&["x"]), ..Default::default() }, "filter.alert_ids[0]"),
        (pb::DeliveryFilter { channel_ids: strings(&[""]), ..Default::default() }, "filter.channel_ids[0]"),
        (pb::DeliveryFilter { statuses: vec![9], ..Default::default() }, "filter.statuses[0]"),
        (pb::DeliveryFilter { error: "e".repeat(256), ..Default::default() }, "filter.error"),
    ] {
        refused(deliveries.list_deliveries(list(filter.clone())).await, path);
        let request = pb::ReplayDeliveriesRequest { filter: Some(filter), ..Default::default() };
        refused(deliveries.replay_deliveries(request).await, path);
    }
    refused(deliveries.replay_deliveries(pb::ReplayDeliveriesRequest::default()).await, "filter");
    refused(deliveries.get_delivery(pb::GetDeliveryRequest { id: "x".into() }).await, "id");
    refused(deliveries.retry_delivery(pb::RetryDeliveryRequest::default()).await, "id");
    let secret = pb::RotateSigningSecretRequest { id: String::new(), ..Default::default() };
    refused(server.channels().rotate_signing_secret(secret).await, "id");
    server.stop().await;
}
