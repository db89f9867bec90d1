//! Who raised and moved an alert, when and why.

use watchpost::pb;

use super::{Acknowledged, Delivered, Dismissed, NONE, Pending, advance, alert, ready};
use crate::support::{
    TestServer,
    calls::{Reply, execute, refused, walk},
    database::{Backend, on_both},
};

async fn list(server: &TestServer, filter: pb::AlertTransitionFilter) -> Reply<pb::ListAlertTransitionsResponse> {
    let request = pb::ListAlertTransitionsRequest { filter: Some(filter), ..Default::default() };
    server.alerts().list_alert_transitions(request).await
}

/// The transitions of an alert, oldest first.
pub async fn of(server: &TestServer, alert_id: &str) -> Vec<pb::AlertTransition> {
    let filter = pb::AlertTransitionFilter { alert_id: alert_id.into(), ..Default::default() };
    let page = list(server, filter).await.unwrap().into_inner();
    page.alert_transitions
}

#[on_both]
async fn every_change_of_an_alert_is_kept_with_who_and_why(backend: Backend) {
    let server = ready(backend).await;
    let raised = alert(&server, Pending).await;
    let acknowledge = pb::AcknowledgeAlertRequest {
        id: raised.id.clone(),
        actor: "ann".into(),
        reason: "on my way".into(),
        ..Default::default()
    };
    let acknowledged = server.alerts().acknowledge_alert(acknowledge).await.unwrap().into_inner();
    assert_eq!(acknowledged.acknowledged_by.as_deref(), Some("ann"));
    assert_eq!(acknowledged.acknowledged_at, acknowledged.updated_at);
    let dismissed = advance(&server, &raised.id, Dismissed, None).await.unwrap().into_inner();
    assert_eq!(dismissed.acknowledged_by.as_deref(), Some("ann"));
    assert_eq!(dismissed.dismissed_by.as_deref(), Some("ip:127.0.0.1"));
    // What was refused is no transition.
    advance(&server, &raised.id, Dismissed, None).await.unwrap_err();
    advance(&server, &raised.id, Dismissed, Some(1)).await.unwrap_err();

    let kept = of(&server, &raised.id).await;
    let rule = format!("rule:{}", raised.rule_id.clone().unwrap());
    let expected = [
        (None, Pending, 1, rule.as_str(), None, raised.created_at),
        (Some(Pending), Acknowledged, 2, "ann", Some("on my way"), acknowledged.updated_at),
        (Some(Acknowledged), Dismissed, 3, "ip:127.0.0.1", None, dismissed.updated_at),
    ];
    assert_eq!(kept.len(), expected.len());
    for (kept, (from, to, version_id, actor, reason, created_at)) in kept.iter().zip(expected) {
        let expected = pb::AlertTransition {
            id: kept.id,
            alert_id: raised.id.clone(),
            from_status: from.map(Into::into),
            to_status: to.into(),
            version_id,
            actor: actor.into(),
            reason: reason.map(Into::into),
            created_at,
        };
        assert_eq!(kept, &expected);
    }
    server.stop().await;
}

#[on_both]
async fn transitions_are_listed_newest_first_by_every_filter(backend: Backend) {
    let server = ready(backend).await;
    let (first, second) = (alert(&server, Pending).await, alert(&server, Acknowledged).await);
    advance(&server, &first.id, Dismissed, None).await.unwrap();
    let all = list(&server, pb::AlertTransitionFilter::default()).await.unwrap().into_inner().alert_transitions;
    let told: Vec<_> = all.iter().map(|row| (row.alert_id.as_str(), row.to_status())).collect();
    let (a, b) = (first.id.as_str(), second.id.as_str());
    assert_eq!(told, [(a, Dismissed), (b, Acknowledged), (b, Pending), (a, Pending)]);
    let any = pb::AlertTransitionFilter::default;
    let since = pb::TimeRange { start: all[1].created_at, end: None };
    let before = pb::TimeRange { start: None, end: all[2].created_at };
    for (filter, expected) in [
        (pb::AlertTransitionFilter { alert_id: b.to_uppercase(), ..any() }, &[2, 1][..]),
        (pb::AlertTransitionFilter { alert_id: NONE.into(), ..any() }, &[]),
        (pb::AlertTransitionFilter { actor: "ip:127.0.0.1".into(), ..any() }, &[0, 1]),
        (pb::AlertTransitionFilter { actor: all[2].actor.clone(), ..any() }, &[2, 3]),
        (pb::AlertTransitionFilter { actor: "ip".into(), ..any() }, &[]),
        (pb::AlertTransitionFilter { to_statuses: vec![Dismissed.into(), Pending.into()], ..any() }, &[0, 2, 3]),
        (pb::AlertTransitionFilter { to_statuses: vec![Delivered.into()], ..any() }, &[]),
        (pb::AlertTransitionFilter { created_at: Some(since), ..any() }, &[0, 1]),
        (pb::AlertTransitionFilter { created_at: Some(before), ..any() }, &[3]),
        (pb::AlertTransitionFilter { alert_id: a.into(), actor: "ip:127.0.0.1".into(), ..any() }, &[0]),
    ] {
        let found = list(&server, filter.clone()).await.unwrap().into_inner().alert_transitions;
        let expected: Vec<_> = expected.iter().map(|at| all[*at].clone()).collect();
        assert_eq!(found, expected, "{filter:?}");
    }
    server.stop().await;
}

#[on_both]
async fn pages_of_transitions_neither_skip_nor_repeat(backend: Backend) {
    let server = ready(backend).await;
    let raised = alert(&server, Acknowledged).await;
    advance(&server, &raised.id, Dismissed, None).await.unwrap();
    alert(&server, Pending).await;
    execute(&server, "UPDATE alert_transitions SET created_at = '2026-01-01T00:00:00+00:00' WHERE id > 1").await;
    for (alert_id, total) in [(String::new(), 4), (raised.id.clone(), 3)] {
        walk(total, async |page_size, page_token| {
            let filter = pb::AlertTransitionFilter { alert_id: alert_id.clone(), ..Default::default() };
            let request = pb::ListAlertTransitionsRequest { page_size, page_token, filter: Some(filter) };
            let page = server.alerts().list_alert_transitions(request).await.unwrap().into_inner();
            (page.alert_transitions, page.next_page_token)
        })
        .await;
    }
    server.stop().await;
}

#[on_both]
async fn bad_actors_reasons_and_filters_are_refused(backend: Backend) {
    let server = ready(backend).await;
    let id = alert(&server, Pending).await.id;
    let long = "ä".repeat(1_001);
    for (actor, reason, field) in [(&long[..202], "", "actor"), (" ", "", "actor"), ("", &*long, "reason")] {
        let (actor, reason) = (actor.to_string(), reason.to_string());
        let acknowledge = pb::AcknowledgeAlertRequest {
            id: id.clone(),
            actor: actor.clone(),
            reason: reason.clone(),
            ..Default::default()
        };
        refused(server.alerts().acknowledge_alert(acknowledge).await, field);
        let dismiss = pb::DismissAlertRequest { id: id.clone(), actor, reason, ..Default::default() };
        refused(server.alerts().dismiss_alert(dismiss).await, field);
    }
    let any = pb::AlertTransitionFilter::default;
    refused(list(&server, pb::AlertTransitionFilter { alert_id: "1".into(), ..any() }).await, "filter.alert_id");
    refused(list(&server, pb::AlertTransitionFilter { actor: long, ..any() }).await, "filter.actor");
    refused(list(&server, pb::AlertTransitionFilter { to_statuses: vec![9], ..any() }).await, "filter.to_statuses[0]");
    assert_eq!(of(&server, &id).await.len(), 1);
    server.stop().await;
}
