//! Channels: made, read, changed and deleted; and what is secret of them.

use sea_orm::{ConnectionTrait, Statement};
use tonic::Code;
use watchpost::pb::{
    self, ChangeKind, DeliveryStatus, NotificationChannelKind, Severity, SmtpSecurity, Topic,
    notification_channel::Kind, watch_response::Update,
};

use super::{SECRET, get_channel, of_alert, raise, ready, telling, webhook, with_ops};
use crate::support::{
    TestServer,
    calls::{Reply, failed, mask, metadata, not_found, refused, strings, walk},
    database::{Backend, on_both},
    field,
    receiver::Answer,
    topics,
};

const NONE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

pub(super) async fn update(
    server: &TestServer,
    channel: pb::NotificationChannel,
    paths: &[&str],
) -> Reply<pb::NotificationChannel> {
    let request = pb::UpdateNotificationChannelRequest {
        notification_channel: Some(channel),
        update_mask: mask(paths),
        expected_version_id: None,
    };
    server.channels().update_notification_channel(request).await
}

async fn delete(server: &TestServer, id: &str, force: bool) -> Reply<()> {
    let request = pb::DeleteNotificationChannelRequest { id: id.into(), force };
    server.channels().delete_notification_channel(request).await
}

/// A webhook with everything that there is.
pub(super) fn full() -> pb::NotificationChannel {
    pb::NotificationChannel {
        name: "ops".into(),
        description: Some("Whoever is on duty.".into()),
        enabled: Some(false),
        quiet_times: vec![pb::Schedule {
            days: vec![pb::DayOfWeek::Sunday.into()],
            start_time: "22:00".into(),
            end_time: "06:00".into(),
            time_zone: "Europe/Berlin".into(),
        }],
        quiet_except: Severity::Critical.into(),
        kind: Some(Kind::Webhook(pb::WebhookChannel {
            url: "https://example.com/hook?x=1".into(),
            signing_secrets: strings(&[SECRET, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]),
            headers: [("X-Team".into(), "red".into()), ("Authorization".into(), "Bearer hunter2".into())].into(),
            timeout: Some(prost_types::Duration { seconds: 7, nanos: 0 }),
            ..Default::default()
        })),
        ..Default::default()
    }
}

pub(super) fn mail() -> pb::EmailChannel {
    pb::EmailChannel {
        host: "mail.example.com".into(),
        username: Some("watchpost".into()),
        password: "hunter2".into(),
        from_address: "Watchpost <watchpost@example.com>".into(),
        to_addresses: strings(&["ops@example.com", "Ann <ann@example.com>"]),
        ..Default::default()
    }
}

/// What is told of a channel that was sent like this.
fn told(sent: pb::NotificationChannel, told: &pb::NotificationChannel) -> pb::NotificationChannel {
    let kind = sent.kind.map(|kind| match kind {
        Kind::Webhook(webhook) => {
            let mut names: Vec<_> = webhook.headers.keys().map(|name| name.to_lowercase()).collect();
            names.sort();
            let (host, _) = webhook.url.split_once("/hook").unwrap();
            Kind::Webhook(pb::WebhookChannel {
                url: format!("{host}/***"),
                signing_secret_count: i32::try_from(webhook.signing_secrets.len()).unwrap(),
                signing_secrets: vec![],
                header_names: names,
                headers: [].into(),
                timeout: webhook.timeout.or(Some(prost_types::Duration { seconds: 15, nanos: 0 })),
            })
        }
        Kind::Email(email) => Kind::Email(pb::EmailChannel {
            has_password: !email.password.is_empty(),
            password: String::new(),
            port: if email.port == 0 { 587 } else { email.port },
            security: SmtpSecurity::Starttls.into(),
            timeout: email.timeout.or(Some(prost_types::Duration { seconds: 30, nanos: 0 })),
            ..email
        }),
        stream @ Kind::Stream(_) => stream,
    });
    pb::NotificationChannel {
        id: told.id.clone(),
        enabled: sent.enabled.or(Some(true)),
        kind,
        created_at: told.created_at,
        updated_at: told.updated_at,
        version_id: told.version_id,
        ..sent
    }
}

#[on_both]
async fn a_channel_is_told_as_it_was_made_without_its_secrets(backend: Backend) {
    let server = ready(backend).await;
    let mut watch = server.watch(topics(&[Topic::NotificationChannels])).await;
    let email = pb::NotificationChannel { name: "mail".into(), kind: Some(Kind::Email(mail())), ..Default::default() };
    let stream = pb::NotificationChannel {
        name: "screen 🎥".into(),
        kind: Some(Kind::Stream(pb::StreamChannel {})),
        ..Default::default()
    };
    for sent in [full(), email, stream] {
        let channel = server.notification_channel(sent.clone()).await;
        assert_eq!(channel, told(sent, &channel));
        assert_eq!((channel.version_id, channel.created_at), (1, channel.updated_at));
        assert_eq!(get_channel(&server, &channel.id).await, channel);
        let Update::NotificationChannel(change) = watch.update().await else { panic!("no channel") };
        assert_eq!((change.kind(), change.notification_channel.as_ref()), (ChangeKind::Created, Some(&channel)));
    }
    // Nothing of it is in the database, nor in its feed.
    let db = server.database.connect().await;
    for (table, columns) in [("notification_channels", "config, secrets"), ("changes", "message, message")] {
        let sql = Statement::from_string(db.get_database_backend(), format!("SELECT {columns} FROM {table}"));
        for row in db.query_all_raw(sql).await.unwrap() {
            let bytes: Vec<u8> = row.try_get_by_index::<Option<Vec<u8>>>(1).unwrap().unwrap_or_default();
            let config: String =
                row.try_get_by_index::<serde_json::Value>(0).map(|json| json.to_string()).unwrap_or_default();
            let text = format!("{config}{}", String::from_utf8_lossy(&bytes));
            for secret in ["hunter2", "whsec_", "AQEBAQ", "x=1"] {
                assert!(!text.contains(secret), "{table}: {text}");
            }
        }
    }
    db.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn a_name_is_taken_once(backend: Backend) {
    let server = ready(backend).await;
    server.streams(["ops"]).await;
    let request = pb::CreateNotificationChannelRequest { notification_channel: Some(full()) };
    let reply = server.channels().create_notification_channel(request).await;
    let status = failed(reply, Code::AlreadyExists, "ALREADY_EXISTS");
    assert_eq!(field(&status), "notification_channel.name");
    server.stop().await;
}

#[on_both]
async fn an_update_changes_what_its_mask_names_and_keeps_secrets(backend: Backend) {
    let server = ready(backend).await;
    let channel = server.notification_channel(full()).await;
    let change = |webhook: pb::WebhookChannel| pb::NotificationChannel {
        id: channel.id.clone(),
        kind: Some(Kind::Webhook(webhook)),
        ..Default::default()
    };
    let hook = |channel: &pb::NotificationChannel| match channel.kind.clone() {
        Some(Kind::Webhook(webhook)) => webhook,
        other => panic!("{other:?}"),
    };
    let slower = Some(prost_types::Duration { seconds: 9, nanos: 0 });
    let same_url = pb::WebhookChannel { url: hook(&channel).url, timeout: slower, ..Default::default() };
    let changed = update(&server, change(same_url), &[]).await.unwrap().into_inner();
    let expected = pb::WebhookChannel { timeout: slower, ..hook(&channel) };
    assert_eq!((hook(&changed), changed.version_id), (expected.clone(), 2));

    let nothing = pb::NotificationChannel { id: channel.id.clone(), ..Default::default() };
    let changed = update(&server, nothing.clone(), &["webhook.headers", "webhook.timeout"]).await.unwrap();
    let fewer = pb::WebhookChannel {
        header_names: vec![],
        timeout: Some(prost_types::Duration { seconds: 15, nanos: 0 }),
        ..expected
    };
    assert_eq!(hook(&changed.into_inner()), fewer);
    let one = pb::WebhookChannel { signing_secrets: strings(&[SECRET]), ..Default::default() };
    let changed = update(&server, change(one), &["webhook.signing_secrets"]).await.unwrap().into_inner();
    assert_eq!(hook(&changed).signing_secret_count, 1);
    let kept = update(&server, nothing.clone(), &["webhook.signing_secrets"]).await.unwrap().into_inner();
    assert_eq!(hook(&kept).signing_secret_count, 1, "none leaves them as they are");

    let changed = update(&server, nothing.clone(), &["description", "quiet_times", "quiet_except", "enabled"]).await;
    let changed = changed.unwrap().into_inner();
    assert_eq!(
        (changed.description, changed.quiet_times, changed.quiet_except, changed.enabled),
        (None, vec![], 0, Some(true))
    );

    refused(update(&server, nothing.clone(), &["name"]).await, "update_mask");
    refused(update(&server, nothing.clone(), &["webhook"]).await, "update_mask");
    refused(update(&server, nothing.clone(), &["email.host"]).await, "notification_channel.email");
    let other = pb::NotificationChannel { kind: Some(Kind::Email(mail())), ..nothing.clone() };
    refused(update(&server, other, &[]).await, "notification_channel.email");
    let renamed = pb::NotificationChannel { name: "new".into(), ..nothing.clone() };
    refused(update(&server, renamed, &[]).await, "notification_channel.name");
    refused(update(&server, nothing.clone(), &["webhook.url"]).await, "notification_channel.webhook.url");
    let absent = pb::NotificationChannel { id: NONE.into(), ..Default::default() };
    not_found(update(&server, absent, &[]).await, "notification channel", NONE);
    let request = pb::UpdateNotificationChannelRequest {
        notification_channel: Some(nothing),
        expected_version_id: Some(1),
        ..Default::default()
    };
    failed(server.channels().update_notification_channel(request).await, Code::Aborted, "STALE_VERSION");
    server.stop().await;
}

#[on_both]
async fn a_password_goes_with_its_user(backend: Backend) {
    let server = ready(backend).await;
    let channel =
        pb::NotificationChannel { name: "mail".into(), kind: Some(Kind::Email(mail())), ..Default::default() };
    let channel = server.notification_channel(channel).await;
    let nothing = pb::NotificationChannel { id: channel.id.clone(), ..Default::default() };
    let email = |channel: pb::NotificationChannel| match channel.kind {
        Some(Kind::Email(email)) => email,
        other => panic!("{other:?}"),
    };
    let kept = update(&server, nothing.clone(), &["email.password", "email.timeout"]).await.unwrap();
    assert!(email(kept.into_inner()).has_password);
    let gone = email(update(&server, nothing.clone(), &["email.username"]).await.unwrap().into_inner());
    assert_eq!((gone.has_password, gone.username), (false, None));
    let named = pb::EmailChannel { username: Some("x".into()), ..Default::default() };
    let named = pb::NotificationChannel { kind: Some(Kind::Email(named)), ..nothing };
    refused(update(&server, named, &[]).await, "notification_channel.email.password");
    server.stop().await;
}

#[on_both]
async fn a_channel_that_rules_name_is_deleted_only_by_force(backend: Backend) {
    let (server, receiver, channel) = with_ops(backend).await;
    receiver.answer(Answer::Status(500, vec![]));
    let alert = raise(&server).await;
    let status = failed(delete(&server, &channel.id, false).await, Code::FailedPrecondition, "IN_USE");
    let request = pb::ListAlertRulesRequest::default();
    let rules = server.rules().list_alert_rules(request).await.unwrap().into_inner().alert_rules;
    assert_eq!(metadata(&status, "used_by"), rules[0].id);
    let mut watch = server.watch(topics(&[Topic::NotificationChannels])).await;
    delete(&server, &channel.id, true).await.unwrap();
    let Update::NotificationChannel(change) = watch.update().await else { panic!("no channel") };
    assert_eq!(change.kind(), ChangeKind::Deleted);
    not_found(delete(&server, &channel.id, true).await, "notification channel", &channel.id);

    let left = of_alert(&server, &alert.id).await.remove(0);
    assert_eq!((left.status(), left.channel_id, left.channel_name.as_str()), (DeliveryStatus::Cancelled, None, "ops"));
    let request = pb::RetryDeliveryRequest { id: left.id };
    failed(server.deliveries().retry_delivery(request).await, Code::FailedPrecondition, "BROKEN_REFERENCE");
    // The rule goes on, and may be changed in other ways.
    let after = raise(&server).await;
    assert_eq!(of_alert(&server, &after.id).await, []);
    let rule = pb::AlertRule { id: rules[0].id.clone(), name: "new".into(), ..Default::default() };
    let request = pb::UpdateAlertRuleRequest { alert_rule: Some(rule), ..Default::default() };
    server.rules().update_alert_rule(request).await.unwrap();
    server.stop().await;
}

#[on_both]
async fn a_rule_names_channels_that_there_are(backend: Backend) {
    let server = ready(backend).await;
    server.streams(["screen"]).await;
    let request = pb::CreateAlertRuleRequest { alert_rule: Some(telling(&["screen", "Screen"])) };
    let status = failed(server.rules().create_alert_rule(request).await, Code::FailedPrecondition, "BROKEN_REFERENCE");
    assert_eq!(field(&status), "alert_rule.channels[1]");
    server.stop().await;
}

#[on_both]
async fn a_channel_whose_key_is_lost_holds_its_deliveries_until_it_has_new_secrets(backend: Backend) {
    let (server, receiver, channel) = with_ops(backend).await;
    let database = server.stop().await;
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("new.key");
    std::fs::write(&key, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let server = TestServer::start_with(database, |settings| {
        settings.notification_networks = vec!["127.0.0.0/8".parse().unwrap()];
        settings.secret_key_file = Some(key.clone());
    })
    .await;
    let alert = raise(&server).await;
    let request = pb::SendTestNotificationRequest { id: channel.id.clone() };
    let tested = server.channels().send_test_notification(request).await.unwrap().into_inner();
    assert!(!tested.delivered && tested.error.contains("new.key"), "{tested:?}");
    let held = of_alert(&server, &alert.id).await.remove(0);
    assert_eq!((held.status(), held.attempts), (DeliveryStatus::Queued, 0));
    assert!(receiver.received().is_empty());
    let change = |secrets: &[&str]| pb::NotificationChannel {
        id: channel.id.clone(),
        description: Some("new".into()),
        kind: Some(Kind::Webhook(pb::WebhookChannel {
            url: receiver.url(),
            signing_secrets: strings(secrets),
            ..Default::default()
        })),
        ..Default::default()
    };
    refused(update(&server, change(&[]), &[]).await, "notification_channel.webhook.signing_secrets");
    let described = pb::NotificationChannel { kind: None, ..change(&[]) };
    refused(update(&server, described, &[]).await, "notification_channel.webhook.url");
    update(&server, change(&[SECRET]), &[]).await.unwrap();
    receiver.wait_for(1).await;
    server.stop().await;
}

#[on_both]
async fn channels_are_listed_by_page_and_filter(backend: Backend) {
    let server = ready(backend).await;
    server.streams(["a", "b", "c%"]).await;
    server.notification_channel(webhook("Ops", "https://example.com".into())).await;
    server.notification_channel(full()).await;
    let list = async |page_size: i32, page_token: String, filter: pb::NotificationChannelFilter| {
        let request = pb::ListNotificationChannelsRequest { page_size, page_token, filter: Some(filter) };
        let page = server.channels().list_notification_channels(request).await.unwrap().into_inner();
        let names: Vec<_> = page.notification_channels.into_iter().map(|channel| channel.name).collect();
        (names, page.next_page_token)
    };
    walk(5, async |size, token| list(size, token, pb::NotificationChannelFilter::default()).await).await;
    let kinds = vec![NotificationChannelKind::Webhook.into()];
    for (filter, expected) in [
        (pb::NotificationChannelFilter { kinds, ..Default::default() }, &["ops", "Ops"][..]),
        (pb::NotificationChannelFilter { enabled: Some(false), ..Default::default() }, &["ops"]),
        (pb::NotificationChannelFilter { name: "OPS".into(), ..Default::default() }, &["ops", "Ops"]),
        (pb::NotificationChannelFilter { name: "%".into(), ..Default::default() }, &["c%"]),
    ] {
        assert_eq!(list(0, String::new(), filter).await.0, expected);
    }
    server.stop().await;
}
