//! The outbox: listing deliveries, and queueing them again.

use watchpost::pb::{self, DeliveryStatus, event_service_client::EventServiceClient};

use super::{becomes, delivery_when, list, raise, telling, webhook, with_ops};
use crate::support::{
    self, TestServer,
    calls::{not_found, walk},
    database::{Backend, TestDatabase, on_both},
    eventually, eventually_some,
    receiver::{Answer, Receiver},
};

const NONE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

#[on_both]
async fn deliveries_are_listed_by_page_and_filter(backend: Backend) {
    let (server, receiver, channel) = with_ops(backend).await;
    let mut alerts = Vec::new();
    for _ in 0..5 {
        alerts.push(raise(&server).await);
    }
    for alert in &alerts {
        becomes(&server, &alert.id, DeliveryStatus::Delivered).await;
    }
    receiver.answer(Answer::Status(500, vec![]));
    let failing = raise(&server).await;
    delivery_when(&server, &failing.id, |delivery| delivery.last_error.is_some()).await;
    walk(6, async |page_size, page_token| {
        let request = pb::ListDeliveriesRequest { page_size, page_token, filter: None };
        let page = server.deliveries().list_deliveries(request).await.unwrap().into_inner();
        let ids = page.deliveries.into_iter().map(|delivery| delivery.id).collect();
        (ids, page.next_page_token)
    })
    .await;
    let count = async |filter| list(&server, filter).await.len();
    let default = pb::DeliveryFilter::default;
    assert_eq!(count(pb::DeliveryFilter { alert_ids: vec![failing.id.clone()], ..default() }).await, 1);
    assert_eq!(count(pb::DeliveryFilter { channel_ids: vec![channel.id.clone()], ..default() }).await, 6);
    assert_eq!(count(pb::DeliveryFilter { channel_ids: vec![NONE.into()], ..default() }).await, 0);
    let statuses = vec![DeliveryStatus::Delivered.into()];
    assert_eq!(count(pb::DeliveryFilter { statuses, ..default() }).await, 5);
    assert_eq!(count(pb::DeliveryFilter { escalation: Some(true), ..default() }).await, 0);
    assert_eq!(count(pb::DeliveryFilter { escalation: Some(false), ..default() }).await, 6);
    assert_eq!(count(pb::DeliveryFilter { error: "ANSWERED 500".into(), ..default() }).await, 1);
    let before = pb::TimeRange { end: alerts[2].created_at, ..Default::default() };
    assert_eq!(count(pb::DeliveryFilter { created_at: Some(before), ..default() }).await, 2);
    let from = pb::TimeRange { start: alerts[2].created_at, ..Default::default() };
    assert_eq!(count(pb::DeliveryFilter { created_at: Some(from), ..default() }).await, 4);

    let id = list(&server, default()).await.remove(0).id;
    let got = server.deliveries().get_delivery(pb::GetDeliveryRequest { id: id.clone() }).await;
    assert_eq!(got.unwrap().into_inner().id, id);
    let request = pb::GetDeliveryRequest { id: NONE.into() };
    not_found(server.deliveries().get_delivery(request).await, "delivery", NONE);
    let request = pb::RetryDeliveryRequest { id: NONE.into() };
    not_found(server.deliveries().retry_delivery(request).await, "delivery", NONE);
    server.stop().await;
}

#[on_both]
async fn what_was_delivered_can_be_replayed_with_its_id(backend: Backend) {
    let (server, receiver, channel) = with_ops(backend).await;
    let other = Receiver::start().await;
    server.notification_channel(webhook("other", other.url())).await;
    let mut alerts = Vec::new();
    for _ in 0..20 {
        alerts.push(raise(&server).await);
    }
    for alert in &alerts {
        becomes(&server, &alert.id, DeliveryStatus::Delivered).await;
    }
    let first = receiver.ids();
    assert!(first.len() == 20 && first.values().all(|times| *times == 1));
    let replay = async |dry_run: bool| {
        let filter = pb::DeliveryFilter { channel_ids: vec![channel.id.clone()], ..Default::default() };
        let request = pb::ReplayDeliveriesRequest { filter: Some(filter), all: false, dry_run };
        server.deliveries().replay_deliveries(request).await.unwrap().into_inner().queued
    };
    let delivered_at = list(&server, pb::DeliveryFilter::default()).await[0].delivered_at;
    assert_eq!(replay(true).await, 20);
    assert_eq!(replay(false).await, 20);
    receiver.wait_for(40).await;
    for alert in &alerts {
        becomes(&server, &alert.id, DeliveryStatus::Delivered).await;
    }
    assert_eq!(
        list(&server, pb::DeliveryFilter::default()).await[0].delivered_at,
        delivered_at,
        "the first time stays"
    );
    let twice = receiver.ids();
    assert!(twice.len() == 20 && twice.values().all(|times| *times == 2), "{twice:?}");
    assert!(other.received().is_empty());
    server.stop().await;
}

#[tokio::test]
async fn two_processes_share_the_work_and_deliver_everything_once() {
    let settings = |settings: &mut watchpost::config::Settings| {
        settings.notification_networks = vec!["127.0.0.0/8".parse().unwrap()];
    };
    let database = TestDatabase::migrated(Backend::Postgres).await;
    let one = TestServer::start_with(database, settings).await;
    let two = support::start(one.database.url(), settings).await;
    one.camera("door").await;
    let receiver = Receiver::start().await;
    one.notification_channel(webhook("ops", receiver.url())).await;
    one.rule(telling(&["ops"])).await;
    let channels = [one.channel.clone(), support::connect(&format!("http://{}", two.address)).await];
    // The other one has to learn of the rule first.
    let mut other = EventServiceClient::new(channels[1].clone());
    let mut raised = eventually_some("the other process raises an alert", async || {
        let answer = other.ingest_event(support::ingest("door", vec![])).await;
        let alerts = answer.unwrap().into_inner().alerts.len();
        (alerts > 0).then_some(alerts)
    })
    .await;
    let ingests = (0..200).map(|number| {
        let mut events = EventServiceClient::new(channels[number % 2].clone());
        tokio::spawn(async move {
            let request = support::ingest("door", vec![]);
            events.ingest_event(request).await.unwrap();
        })
    });
    for ingest in ingests.collect::<Vec<_>>() {
        ingest.await.unwrap();
    }
    raised += 200;
    receiver.wait_for(raised).await;
    let is_done = |one: &pb::Delivery| one.status() == DeliveryStatus::Delivered;
    let all_are_done = async || list(&one, pb::DeliveryFilter::default()).await.iter().all(is_done);
    eventually("all is delivered", all_are_done).await;
    let ids = receiver.ids();
    assert_eq!(ids.len(), raised);
    assert!(ids.values().all(|times| *times == 1), "{ids:?}");
    drop((other, channels));
    one.stop().await;
    two.stop().await;
}
