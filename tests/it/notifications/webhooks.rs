//! What a receiver of webhooks gets, and what is told of it.

use watchpost::pb::{self, AlertChangeKind, AlertStatus, DeliveryStatus, Topic};

use super::{becomes, get_alert, get_channel, list, of_alert, raise, ready, telling, webhook, with_ops};
use crate::support::{
    calls::{failed, strings},
    database::{Backend, on_both},
    receiver::{Answer, Receiver},
    topics,
};
use tonic::Code;

#[on_both]
async fn an_alert_is_posted_and_becomes_delivered(backend: Backend) {
    let (server, receiver, channel) = with_ops(backend).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let request = pb::IngestEventRequest {
        event: Some(pb::Event {
            camera_id: "door".into(),
            risk_score: Some(70),
            summary: Some("Somebody at the door.".into()),
            ..Default::default()
        }),
        detections: vec![crate::support::detection("person", 0.9)],
        ..Default::default()
    };
    let raised = server.events().ingest_event(request).await.unwrap().into_inner();
    let (event, alert) = (raised.event.unwrap(), &raised.alerts[0]);
    assert_eq!(alert.status(), AlertStatus::Pending);

    let post = receiver.wait_for(1).await.remove(0);
    assert_eq!(post.header("content-type"), "application/cloudevents+json; charset=utf-8");
    let delivery = becomes(&server, &alert.id, DeliveryStatus::Delivered).await;
    assert_eq!(post.header("webhook-id"), delivery.id);
    assert!(post.header("webhook-signature").starts_with("v1,"));
    let body = post.json();
    assert_eq!(body["specversion"], "1.0");
    assert_eq!(body["id"], delivery.id);
    assert_eq!(body["source"], "watchpost");
    assert_eq!(body["type"], "watchpost.alert.raised");
    assert_eq!(body["subject"], "door");
    let told = &body["data"];
    assert_eq!(told["alert"]["id"], alert.id);
    assert_eq!(told["alert"]["severity"], "medium");
    assert_eq!(told["alert"]["rule_name"], "everything");
    assert_eq!(told["event"]["id"], event.id);
    assert_eq!(told["event"]["risk_score"], 70);
    assert_eq!(told["event"]["summary"], "Somebody at the door.");
    assert_eq!(told["event"]["object_types"], serde_json::json!(["person"]));

    let told = (delivery.attempts, delivery.last_status_code, &delivery.last_error, &delivery.next_attempt_at);
    assert_eq!(told, (1, Some(204), &None, &None));
    let after = get_alert(&server, &alert.id).await;
    assert_eq!((after.status(), after.version_id), (AlertStatus::Delivered, 2));
    assert!(after.delivered_at.is_some());
    assert_eq!(watch.alert().await.0, AlertChangeKind::Created);
    assert_eq!(watch.alert().await, (AlertChangeKind::Delivered, after));
    let filter = pb::AlertTransitionFilter { alert_id: alert.id.clone(), ..Default::default() };
    let request = pb::ListAlertTransitionsRequest { filter: Some(filter), ..Default::default() };
    let moves = server.alerts().list_alert_transitions(request).await.unwrap().into_inner().alert_transitions;
    assert_eq!((moves[1].to_status(), &moves[1].actor), (AlertStatus::Delivered, &format!("channel:{}", channel.id)));
    server.stop().await;
    assert_eq!(receiver.received().len(), 1);
}

#[on_both]
async fn every_channel_of_a_rule_is_told_once(backend: Backend) {
    let server = ready(backend).await;
    let (one, other) = (Receiver::start().await, Receiver::start().await);
    let longest = &*"o".repeat(100);
    server.notification_channel(webhook("one", one.url())).await;
    server.notification_channel(webhook(longest, other.url())).await;
    server.streams(["screen"]).await;
    server.rule(telling(&["one", "screen", longest, "one"])).await;
    let alert = raise(&server).await;
    assert_eq!(alert.channels, strings(&["one", "screen", longest, "one"]));
    one.wait_for(1).await;
    other.wait_for(1).await;
    let names: Vec<_> = of_alert(&server, &alert.id).await.into_iter().map(|one| one.channel_name).collect();
    assert_eq!(names, ["one", longest], "a stream is no delivery");
    server.stop().await;
    assert_eq!((one.received().len(), other.received().len()), (1, 1));
}

#[on_both]
async fn an_alert_that_only_streams_is_found_by_its_channel_and_stays_pending(backend: Backend) {
    let server = ready(backend).await;
    server.streams(["screen", "wall"]).await;
    server.rule(telling(&["wall"])).await;
    server.rule(telling(&["screen"])).await;
    let mut watch = server
        .watch(pb::WatchRequest {
            alert_filter: Some(pb::AlertWatchFilter { channels: strings(&["screen"]), ..Default::default() }),
            ..topics(&[Topic::Alerts])
        })
        .await;
    let raised = server.ingest("door", vec![]).await.alerts;
    let (_, alert) = watch.alert().await;
    assert_eq!((&alert, alert.status()), (&raised[1], AlertStatus::Pending));
    assert_eq!(of_alert(&server, &alert.id).await, []);
    server.stop().await;
}

#[on_both]
async fn while_a_secret_is_rotated_both_sign(backend: Backend) {
    let (server, receiver, channel) = with_ops(backend).await;
    let count = async |expected: i32| {
        let signs = receiver.received().len();
        raise(&server).await;
        let post = receiver.wait_for(signs + 1).await.pop().unwrap();
        let signatures: Vec<_> = post.header("webhook-signature").split(' ').map(ToString::to_string).collect();
        assert_eq!(signatures.len(), usize::try_from(expected).unwrap());
        let pb::notification_channel::Kind::Webhook(webhook) = get_channel(&server, &channel.id).await.kind.unwrap()
        else {
            panic!()
        };
        assert_eq!(webhook.signing_secret_count, expected);
    };
    let rotate = async |secret: &str, overlap: Option<i64>| {
        let overlap = overlap.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
        let request = pb::RotateSigningSecretRequest { id: channel.id.clone(), signing_secret: secret.into(), overlap };
        server.channels().rotate_signing_secret(request).await
    };
    count(1).await;
    let new = format!("whsec_{}", "A".repeat(32));
    let rotated = rotate(&new, None).await.unwrap().into_inner();
    assert_eq!(rotated.version_id, 2);
    count(2).await;
    rotate(&format!("whsec_{}", "B".repeat(32)), Some(0)).await.unwrap();
    count(1).await;
    let request = pb::GetNotificationChannelRequest { id: channel.id.clone() };
    let told = format!("{:?}", server.channels().get_notification_channel(request).await.unwrap());
    assert!(!told.contains("whsec_"), "{told}");
    server.streams(["screen"]).await;
    let request = pb::ListNotificationChannelsRequest::default();
    let streams = server.channels().list_notification_channels(request).await.unwrap().into_inner();
    let id = streams.notification_channels[0].id.clone();
    let request = pb::RotateSigningSecretRequest { id, signing_secret: new, overlap: None };
    failed(server.channels().rotate_signing_secret(request).await, Code::FailedPrecondition, "WRONG_KIND");
    server.stop().await;
}

#[on_both]
async fn a_test_is_sent_at_once_and_is_in_no_ledger(backend: Backend) {
    let (server, receiver, channel) = with_ops(backend).await;
    let mut channels = server.channels();
    let mut test = async || {
        let request = pb::SendTestNotificationRequest { id: channel.id.clone() };
        channels.send_test_notification(request).await.unwrap().into_inner()
    };
    let answer = test().await;
    assert_eq!((answer.delivered, answer.error.as_str(), answer.status_code), (true, "", Some(204)));
    let post = receiver.received().remove(0);
    assert_eq!(post.json()["type"], "watchpost.test");
    receiver.answer(Answer::Status(500, vec![]));
    let answer = test().await;
    assert_eq!((answer.delivered, answer.status_code), (false, Some(500)));
    assert!(answer.error.contains("500"), "{}", answer.error);
    drop(receiver);
    let answer = test().await;
    assert_eq!((answer.delivered, answer.status_code), (false, None));
    assert!(!answer.error.contains("in-the-url"), "{}", answer.error);
    assert_eq!(list(&server, pb::DeliveryFilter::default()).await, []);
    server.stop().await;
}
