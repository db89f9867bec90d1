//! Who is told later, and what ends it.

use watchpost::pb::{self, DeliveryStatus};

use super::{acknowledge, of_alert, raise, ready, telling, webhook};
use crate::support::{
    TestServer,
    calls::{execute, seconds, strings},
    database::{Backend, on_both},
    eventually,
    receiver::{Answer, Receiver},
};

/// A server with the channels `first` and `second`, and a rule that tells the second one after so many seconds.
async fn escalating(backend: Backend, after: i64) -> (TestServer, Receiver, Receiver) {
    let server = ready(backend).await;
    let (first, second) = (Receiver::start().await, Receiver::start().await);
    server.notification_channel(webhook("first", first.url())).await;
    server.notification_channel(webhook("second", second.url())).await;
    let rule = pb::AlertRule {
        escalation: vec![
            pb::EscalationStep { after: seconds(after), channels: strings(&["second"]) },
            pb::EscalationStep { after: seconds(7_200), channels: strings(&["first", "second"]) },
        ],
        ..telling(&["first"])
    };
    server.rule(rule).await;
    (server, first, second)
}

async fn statuses(server: &TestServer, alert_id: &str) -> Vec<(i32, String, DeliveryStatus)> {
    let told = |one: pb::Delivery| (one.escalation_step, one.channel_name.clone(), one.status());
    of_alert(server, alert_id).await.into_iter().map(told).collect()
}

/// Waits until the deliveries of an alert are as expected.
async fn settle(server: &TestServer, alert_id: &str, expected: &[(i32, String, DeliveryStatus)]) {
    let what = format!("the deliveries of the alert are {expected:?}");
    eventually(&what, async || statuses(server, alert_id).await == expected).await;
}

/// Raises another alert, and waits until all its deliveries are delivered. All stored deliveries are due meanwhile, so
/// that a queued or wrongly continued delivery of an earlier alert is attempted as well.
async fn deliver_another(server: &TestServer) -> pb::Alert {
    let other = raise(server).await;
    execute(server, "UPDATE deliveries SET next_attempt_at = '2026-01-01T00:00:00+00:00'").await;
    let delivered = |step, channel: &str| (step, channel.to_string(), DeliveryStatus::Delivered);
    let all = [delivered(0, "first"), delivered(1, "second"), delivered(2, "first"), delivered(2, "second")];
    settle(server, &other.id, &all).await;
    other
}

/// Number of messages about an alert that a receiver has got.
fn messages(receiver: &Receiver, alert_id: &str) -> usize {
    receiver.received().iter().filter(|received| received.alert_id() == alert_id).count()
}

#[on_both]
async fn an_alert_that_nobody_takes_care_of_is_told_to_others(backend: Backend) {
    use DeliveryStatus::{Delivered, Queued};
    let (server, first, second) = escalating(backend, 1).await;
    let alert = raise(&server).await;
    first.wait_for(1).await;
    assert!(second.received().is_empty());
    let told = second.wait_for(1).await.remove(0).json();
    assert_eq!(told["type"], "watchpost.alert.escalated");
    assert_eq!(told["data"]["escalation_step"], 1);
    assert_eq!(told["data"]["alert"]["id"], alert.id);
    let expected = [
        (0, "first".to_string(), Delivered),
        (1, "second".to_string(), Delivered),
        (2, "first".to_string(), Queued),
        (2, "second".to_string(), Queued),
    ];
    settle(&server, &alert.id, &expected).await;
    server.stop().await;
}

#[on_both]
async fn acknowledging_ends_it_at_once(backend: Backend) {
    use DeliveryStatus::{Cancelled, Delivered};
    let (server, first, second) = escalating(backend, 3_600).await;
    let alert = raise(&server).await;
    first.wait_for(1).await;
    acknowledge(&server, &alert.id).await;
    let expected = [
        (0, "first".to_string(), Delivered),
        (1, "second".to_string(), Cancelled),
        (2, "first".to_string(), Cancelled),
        (2, "second".to_string(), Cancelled),
    ];
    settle(&server, &alert.id, &expected).await;
    deliver_another(&server).await;
    assert_eq!((messages(&first, &alert.id), messages(&second, &alert.id)), (1, 0));
    assert_eq!(statuses(&server, &alert.id).await, expected);
    server.stop().await;
}

#[on_both]
async fn what_is_queued_already_is_stopped_too(backend: Backend) {
    let (server, first, second) = escalating(backend, 3_600).await;
    first.answer(Answer::Status(500, vec![]));
    let alert = raise(&server).await;
    first.wait_for(2).await;
    acknowledge(&server, &alert.id).await;
    let cancelled = |statuses: &[(i32, String, DeliveryStatus)]| {
        statuses.iter().all(|(_, _, status)| *status == DeliveryStatus::Cancelled)
    };
    assert!(cancelled(&statuses(&server, &alert.id).await));
    // An attempt that was under way may still come to its end, and changes nothing.
    first.answer(Answer::Status(200, vec![]));
    deliver_another(&server).await;
    let before = messages(&first, &alert.id);
    deliver_another(&server).await;
    assert_eq!(messages(&first, &alert.id), before);
    assert!(cancelled(&statuses(&server, &alert.id).await));
    assert_eq!(messages(&second, &alert.id), 0);
    server.stop().await;
}

#[on_both]
async fn the_escalation_of_a_rule_is_kept_and_changed(backend: Backend) {
    let (server, ..) = escalating(backend, 60).await;
    let request = pb::ListAlertRulesRequest::default();
    let rule = server.rules().list_alert_rules(request).await.unwrap().into_inner().alert_rules.remove(0);
    assert_eq!(rule.escalation.len(), 2);
    let update = async |escalation: Vec<pb::EscalationStep>| {
        let request = pb::UpdateAlertRuleRequest {
            alert_rule: Some(pb::AlertRule { id: rule.id.clone(), escalation, ..Default::default() }),
            update_mask: crate::support::calls::mask(&["escalation"]),
            ..Default::default()
        };
        server.rules().update_alert_rule(request).await
    };
    let step =
        |after: i64, channels: &[&str]| pb::EscalationStep { after: seconds(after), channels: strings(channels) };
    for (steps, field) in [
        (vec![step(0, &["first"])], "alert_rule.escalation[0].after"),
        (vec![step(604_801, &["first"])], "alert_rule.escalation[0].after"),
        (vec![step(5, &["first"]), step(5, &["first"])], "alert_rule.escalation[1].after"),
        (vec![step(5, &[])], "alert_rule.escalation[0].channels"),
        (vec![step(5, &["first", " "])], "alert_rule.escalation[0].channels[1]"),
        ((1..=11).map(|n| step(n, &["first"])).collect(), "alert_rule.escalation"),
    ] {
        crate::support::calls::refused(update(steps).await, field);
    }
    let status = crate::support::calls::failed(
        update(vec![step(5, &["first", "nobody"])]).await,
        tonic::Code::FailedPrecondition,
        "BROKEN_REFERENCE",
    );
    assert_eq!(crate::support::field(&status), "alert_rule.escalation[0].channels[1]");
    let changed = update(vec![step(7, &["first"])]).await.unwrap().into_inner();
    assert_eq!(changed.escalation, [step(7, &["first"])]);
    assert_eq!(update(vec![]).await.unwrap().into_inner().escalation, []);
    server.stop().await;
}
