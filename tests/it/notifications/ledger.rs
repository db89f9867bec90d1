//! The ledger: listed, and queued anew.

use watchpost::pb::{self, DeliveryStatus};

use super::{becomes, list, raise, until, webhook, with_ops};
use crate::support::{
    calls::{not_found, walk},
    database::on_both,
    receiver::{Answer, Receiver},
};

const NONE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

on_both! {
    async fn deliveries_are_listed_by_page_and_filter(backend) {
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
        until(&server, &failing.id, |delivery| delivery.last_error.is_some()).await;
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

    async fn what_was_delivered_can_be_replayed_with_its_id(backend) {
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
        assert_eq!(list(&server, pb::DeliveryFilter::default()).await[0].delivered_at, delivered_at, "the first time stays");
        let twice = receiver.ids();
        assert!(twice.len() == 20 && twice.values().all(|times| *times == 2), "{twice:?}");
        assert!(other.received().is_empty());
        server.stop().await;
    }
}
