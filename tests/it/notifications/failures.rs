//! Receivers that fail in every way.

use std::time::Duration;

use prost_types::FieldMask;
use tokio::time::Instant;
use watchpost::pb::{
    self, AlertStatus, ChangeKind, DeliveryStatus, Topic, notification_channel::Kind, watch_response::Update,
};

use super::{
    SECRET, becomes, delivery_when, get_alert, get_channel, list, of_alert, raise, ready, telling, webhook, with_ops,
};
use crate::support::{
    TestServer,
    database::{Backend, TestDatabase, on_both},
    receiver::{Answer, Receiver},
    topics,
};

/// A webhook that gives up after a second.
fn impatient(url: String) -> pb::NotificationChannel {
    pb::NotificationChannel {
        kind: Some(Kind::Webhook(pb::WebhookChannel {
            url,
            signing_secrets: vec![SECRET.into()],
            timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            ..Default::default()
        })),
        ..webhook("ops", String::new())
    }
}

async fn enable(server: &TestServer, id: &str, enabled: bool) -> pb::NotificationChannel {
    let request = pb::UpdateNotificationChannelRequest {
        notification_channel: Some(pb::NotificationChannel {
            id: id.into(),
            enabled: Some(enabled),
            ..Default::default()
        }),
        update_mask: Some(FieldMask { paths: vec!["enabled".into()] }),
        ..Default::default()
    };
    server.channels().update_notification_channel(request).await.unwrap().into_inner()
}

#[on_both]
async fn what_fails_is_tried_again_with_the_same_id_until_it_succeeds(backend: Backend) {
    let (server, receiver, _) = with_ops(backend).await;
    let no = |status| Answer::Status(status, vec![]);
    let elsewhere = Answer::Status(302, vec![("location", receiver.url())]);
    for (answer, told) in [
        (no(500), "500"),
        (no(404), "404"),
        (elsewhere, "302"),
        (Answer::Drip(500), "500"),
        (Answer::Huge(503), "503"),
        (Answer::Close, ""),
    ] {
        receiver.answer(answer.clone());
        let before = receiver.received().len();
        let alert = raise(&server).await;
        let failing = delivery_when(&server, &alert.id, |delivery| delivery.last_error.is_some()).await;
        assert_eq!(failing.status(), DeliveryStatus::Queued);
        assert!(failing.last_error.unwrap().contains(told), "{answer:?}");
        assert_eq!(failing.next_attempt_at.unwrap().nanos % 1_000, 0, "as databases keep it");
        assert_eq!(get_alert(&server, &alert.id).await.status(), AlertStatus::Pending);
        receiver.answer(no(200));
        let delivery = becomes(&server, &alert.id, DeliveryStatus::Delivered).await;
        let ids: std::collections::HashSet<_> =
            receiver.received()[before..].iter().map(|one| one.header("webhook-id").to_string()).collect();
        assert_eq!(ids, [delivery.id.clone()].into(), "{answer:?}");
        assert!(delivery.attempts >= 2, "{delivery:?}");
        assert_eq!((delivery.last_error, delivery.last_status_code), (None, Some(200)));
        assert_eq!(get_alert(&server, &alert.id).await.status(), AlertStatus::Delivered);
    }
    server.stop().await;
}

#[on_both]
async fn an_answer_that_never_ends_is_an_answer(backend: Backend) {
    let (server, receiver, _) = with_ops(backend).await;
    for answer in [Answer::Huge(200), Answer::Drip(200)] {
        receiver.answer(answer);
        let alert = raise(&server).await;
        let delivery = becomes(&server, &alert.id, DeliveryStatus::Delivered).await;
        assert_eq!((delivery.attempts, delivery.last_status_code), (1, Some(200)));
    }
    server.stop().await;
}

#[on_both]
async fn a_receiver_that_hangs_is_given_up_and_holds_up_no_other(backend: Backend) {
    let server = ready(backend).await;
    let (hanging, quick) = (Receiver::start().await, Receiver::start().await);
    hanging.answer(Answer::Hang);
    server.notification_channel(impatient(hanging.url())).await;
    server.notification_channel(webhook("quick", quick.url())).await;
    server.rule(telling(&["ops", "quick"])).await;
    let begun = Instant::now();
    for _ in 0..100 {
        raise(&server).await;
    }
    quick.wait_for(100).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "nobody waits for the other");
    hanging.wait_for(65).await;
    let error = list(&server, pb::DeliveryFilter { error: "NO ANSWER WITHIN 1s".into(), ..Default::default() });
    assert!(!error.await.is_empty());
    server.stop().await;
}

#[on_both]
async fn what_fails_for_ever_is_dead_and_can_be_retried(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let server = TestServer::start_with(database, |settings| {
        settings.notification_networks = vec!["127.0.0.1/32".parse().unwrap()];
        settings.notification_retry = Duration::from_millis(10);
    })
    .await;
    server.camera("door").await;
    let receiver = Receiver::start().await;
    receiver.answer(Answer::Status(500, vec![]));
    server.notification_channel(webhook("ops", receiver.url())).await;
    server.rule(telling(&["ops"])).await;
    let alert = raise(&server).await;
    // The last times between attempts are long: the clock of the row is set ahead.
    let dead = loop {
        let now = crate::support::calls::execute(
            &server,
            "UPDATE deliveries SET next_attempt_at = '2026-01-01T00:00:00+00:00' WHERE status = 'queued' AND lease_id IS NULL",
        );
        now.await;
        let delivery = of_alert(&server, &alert.id).await.remove(0);
        if delivery.status() == DeliveryStatus::Dead {
            break delivery;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((dead.attempts, dead.last_status_code, dead.next_attempt_at), (10, Some(500), None));
    assert_eq!(receiver.ids(), [(dead.id.clone(), 10)].into());
    assert_eq!(get_alert(&server, &alert.id).await.status(), AlertStatus::Pending);

    receiver.answer(Answer::Status(200, vec![]));
    let request = pb::RetryDeliveryRequest { id: dead.id.clone() };
    let queued = server.deliveries().retry_delivery(request).await.unwrap().into_inner();
    assert_eq!((queued.status(), queued.attempts), (DeliveryStatus::Queued, 10));
    let delivered = becomes(&server, &alert.id, DeliveryStatus::Delivered).await;
    assert_eq!((delivered.id, delivered.attempts), (dead.id, 11));
    server.stop().await;
}

#[on_both]
async fn a_receiver_that_is_gone_disables_its_channel(backend: Backend) {
    let (server, receiver, channel) = with_ops(backend).await;
    let mut watch = server.watch(topics(&[Topic::NotificationChannels])).await;
    receiver.answer(Answer::Status(410, vec![]));
    let alert = raise(&server).await;
    let Update::NotificationChannel(change) = watch.update().await else { panic!("no channel") };
    assert_eq!(change.kind(), ChangeKind::Updated);
    let disabled = change.notification_channel.unwrap();
    assert_eq!((disabled.enabled, disabled.version_id), (Some(false), 2));
    assert!(disabled.disabled_reason.as_ref().unwrap().contains("410"), "{disabled:?}");
    assert_eq!(get_channel(&server, &channel.id).await, disabled);
    let second = raise(&server).await;
    receiver.answer(Answer::Status(200, vec![]));
    for alert in [&alert, &second] {
        let held = of_alert(&server, &alert.id).await.remove(0);
        assert_eq!(held.status(), DeliveryStatus::Queued, "nothing is lost");
    }
    assert_eq!(receiver.received().len(), 1);
    let enabled = enable(&server, &channel.id, true).await;
    assert_eq!((enabled.disabled_reason, enabled.version_id), (None, 3));
    for alert in [&alert, &second] {
        becomes(&server, &alert.id, DeliveryStatus::Delivered).await;
    }
    server.stop().await;
}

#[on_both]
async fn a_receiver_that_wants_less_is_left_alone_for_as_long_as_it_says(backend: Backend) {
    let (server, receiver, channel) = with_ops(backend).await;
    receiver.answer(Answer::Status(429, vec![("retry-after", "2".into())]));
    let first = raise(&server).await;
    let failing = delivery_when(&server, &first.id, |delivery| delivery.last_error.is_some()).await;
    assert_eq!(failing.last_status_code, Some(429));
    let throttled = get_channel(&server, &channel.id).await.throttled_until.unwrap();
    let asked = failing.last_attempt_at.unwrap();
    assert!(throttled.seconds - asked.seconds >= 2, "{throttled:?} {asked:?}");
    let begun = Instant::now();
    receiver.answer(Answer::Status(200, vec![]));
    let second = raise(&server).await;
    for alert in [&first, &second] {
        becomes(&server, &alert.id, DeliveryStatus::Delivered).await;
    }
    assert!(begun.elapsed() > Duration::from_millis(1_500), "it waited: {:?}", begun.elapsed());
    assert_eq!(get_channel(&server, &channel.id).await.throttled_until, None);
    server.stop().await;
}

#[on_both]
async fn a_channel_that_is_disabled_holds_its_deliveries(backend: Backend) {
    let (server, receiver, channel) = with_ops(backend).await;
    enable(&server, &channel.id, false).await;
    let alert = raise(&server).await;
    let held = of_alert(&server, &alert.id).await.remove(0);
    assert_eq!((held.status(), held.attempts), (DeliveryStatus::Queued, 0));
    enable(&server, &channel.id, true).await;
    becomes(&server, &alert.id, DeliveryStatus::Delivered).await;
    assert_eq!(receiver.received().len(), 1);
    server.stop().await;
}

#[on_both]
async fn addresses_inside_are_refused_by_default_even_behind_a_name(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let server = TestServer::start_with(database, |_| {}).await;
    server.camera("door").await;
    let receiver = Receiver::start().await;
    let behind_a_name = format!("http://localhost:{}/hook", receiver.address.port());
    server.notification_channel(webhook("ops", behind_a_name)).await;
    server.rule(telling(&["ops"])).await;
    let alert = raise(&server).await;
    let failing = delivery_when(&server, &alert.id, |delivery| delivery.last_error.is_some()).await;
    assert!(failing.last_error.unwrap().contains("not of the public internet"));
    assert!(receiver.received().is_empty());
    server.stop().await;
}
