//! Quiet times hold deliveries back, not alerts.

use chrono::{Duration as Span, Utc};
use watchpost::pb::{self, AlertStatus, DeliveryStatus, Severity};

use super::{becomes, get_alert, of_alert, raise, ready, telling, webhook};
use crate::support::{
    calls::mask,
    database::{Backend, on_both},
    receiver::Receiver,
};

/// A window of the next hour, or of the hour in five hours.
fn hour(is_now: bool) -> pb::Schedule {
    let start = Utc::now() + if is_now { Span::minutes(-1) } else { Span::hours(5) };
    pb::Schedule {
        start_time: start.format("%H:%M").to_string(),
        end_time: (start + Span::hours(1)).format("%H:%M").to_string(),
        ..Default::default()
    }
}

#[on_both]
async fn in_quiet_times_only_what_is_serious_is_delivered(backend: Backend) {
    let server = ready(backend).await;
    let receiver = Receiver::start().await;
    let channel = pb::NotificationChannel {
        quiet_times: vec![hour(false), hour(true)],
        quiet_except: Severity::High.into(),
        ..webhook("ops", receiver.url())
    };
    let channel = server.notification_channel(channel).await;
    let low = server.rule(telling(&["ops"])).await;
    let held = raise(&server).await;
    let high = pb::AlertRule { severity: Severity::Critical.into(), ..telling(&["ops"]) };
    server.rule(high).await;
    let raised = server.ingest("door", vec![]).await.alerts;
    let serious = raised.iter().find(|alert| alert.severity() == Severity::Critical).unwrap();
    becomes(&server, &serious.id, DeliveryStatus::Delivered).await;
    assert_eq!(receiver.received().len(), 1);
    for alert in [&held, raised.iter().find(|alert| alert.rule_id == Some(low.id.clone())).unwrap()] {
        let delivery = of_alert(&server, &alert.id).await.remove(0);
        assert_eq!((delivery.status(), delivery.attempts), (DeliveryStatus::Queued, 0));
        assert_eq!(get_alert(&server, &alert.id).await.status(), AlertStatus::Pending);
    }
    let request = pb::UpdateNotificationChannelRequest {
        notification_channel: Some(pb::NotificationChannel {
            id: channel.id.clone(),
            quiet_times: vec![hour(false)],
            ..Default::default()
        }),
        update_mask: mask(&["quiet_times"]),
        ..Default::default()
    };
    server.channels().update_notification_channel(request).await.unwrap();
    becomes(&server, &held.id, DeliveryStatus::Delivered).await;
    receiver.wait_for(3).await;
    server.stop().await;
}

#[on_both]
async fn without_an_exception_nothing_is_delivered_in_quiet_times(backend: Backend) {
    let server = ready(backend).await;
    let receiver = Receiver::start().await;
    let channel = pb::NotificationChannel { quiet_times: vec![hour(true)], ..webhook("ops", receiver.url()) };
    server.notification_channel(channel).await;
    let other = Receiver::start().await;
    server.notification_channel(webhook("other", other.url())).await;
    let rule = pb::AlertRule { severity: Severity::Critical.into(), ..telling(&["ops", "other"]) };
    server.rule(rule).await;
    raise(&server).await;
    other.wait_for(1).await;
    raise(&server).await;
    other.wait_for(2).await;
    assert!(receiver.received().is_empty());
    server.stop().await;
}
