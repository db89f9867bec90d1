//! Acknowledging and dismissing many alerts.

use std::collections::HashMap;

use sea_orm::{ConnectionTrait, DatabaseConnection, Statement, TransactionTrait};
use uuid::Uuid;
use watchpost::pb::{self, AlertChangeKind, AlertStatus, Topic};

use super::{Acknowledged, Delivered, Dismissed, Pending, alert, delivery, get, list, ready, transitions};
use crate::support::{
    TestServer,
    calls::{Reply, refused, strings},
    database::{Backend, on_both},
    eventually, topics,
};

fn all() -> pb::AcknowledgeAlertsRequest {
    pb::AcknowledgeAlertsRequest { all: true, actor: "ann".into(), reason: "shift ends".into(), ..Default::default() }
}

async fn acknowledge(server: &TestServer, request: pb::AcknowledgeAlertsRequest) -> Reply<pb::MoveAlertsResponse> {
    server.alerts().acknowledge_alerts(request).await
}

async fn dismiss(server: &TestServer, filter: pb::AlertFilter, dry_run: bool) -> Reply<pb::MoveAlertsResponse> {
    let request = pb::DismissAlertsRequest { filter: Some(filter), dry_run, ..Default::default() };
    server.alerts().dismiss_alerts(request).await
}

fn response(moved: i64, not_moved: &[(AlertStatus, i64)]) -> pb::MoveAlertsResponse {
    let count = |&(status, alerts): &(AlertStatus, i64)| pb::AlertStatusCount { status: status.into(), alerts };
    pb::MoveAlertsResponse {
        matched: moved + not_moved.iter().map(|(_, alerts)| alerts).sum::<i64>(),
        moved,
        not_moved: not_moved.iter().map(count).collect(),
    }
}

#[on_both]
async fn many_alerts_are_moved_where_they_may_and_the_others_counted(backend: Backend) {
    let server = ready(backend).await;
    let mut alerts = Vec::new();
    for status in [Pending, Dismissed, Delivered, Acknowledged, Pending, Dismissed] {
        alerts.push(alert(&server, status).await);
    }
    let expected = response(3, &[(Acknowledged, 1), (Dismissed, 2)]);
    let dry = pb::AcknowledgeAlertsRequest { dry_run: true, ..all() };
    assert_eq!(acknowledge(&server, dry).await.unwrap().into_inner(), expected);
    let before = list(&server, pb::AlertFilter::default()).await;
    assert_eq!(before.len(), 6);
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    assert_eq!(acknowledge(&server, all()).await.unwrap().into_inner(), expected);
    let after = list(&server, pb::AlertFilter::default()).await;
    for (before, after) in before.iter().zip(&after).rev() {
        if !matches!(before.status(), Pending | Delivered) {
            assert_eq!(before, after);
            continue;
        }
        let expected = pb::Alert {
            status: Acknowledged.into(),
            version_id: before.version_id + 1,
            updated_at: after.updated_at,
            acknowledged_at: after.updated_at,
            acknowledged_by: Some("ann".into()),
            ..before.clone()
        };
        assert_eq!(after, &expected);
        assert_eq!(watch.alert().await, (AlertChangeKind::Acknowledged, after.clone()));
        let last = transitions::of(&server, &after.id).await.pop().unwrap();
        assert_eq!((last.actor.as_str(), last.reason.as_deref()), ("ann", Some("shift ends")));
        assert_eq!((last.from_status(), last.version_id), (before.status(), after.version_id));
    }
    assert_eq!(
        acknowledge(&server, all()).await.unwrap().into_inner(),
        response(0, &[(Acknowledged, 4), (Dismissed, 2)])
    );
    server.stop().await;
}

#[on_both]
async fn a_filter_says_which_alerts_are_moved(backend: Backend) {
    let server = ready(backend).await;
    server.camera("gate").await;
    let raised = alert(&server, Pending).await;
    let other = server.ingest("gate", vec![]).await.alerts.remove(0);
    let gate = pb::AlertFilter { camera_ids: strings(&["gate"]), ..Default::default() };
    for (dry_run, status) in [(true, Pending), (false, Dismissed)] {
        assert_eq!(dismiss(&server, gate.clone(), dry_run).await.unwrap().into_inner(), response(1, &[]));
        assert_eq!(get(&server, &other.id).await.unwrap().into_inner().status(), status);
    }
    assert_eq!(get(&server, &raised.id).await.unwrap().into_inner(), raised);
    let none = pb::AlertFilter { camera_ids: strings(&["none"]), ..Default::default() };
    assert_eq!(dismiss(&server, none, false).await.unwrap().into_inner(), response(0, &[]));
    server.stop().await;
}

#[on_both]
async fn all_alerts_are_moved_only_where_it_is_said(backend: Backend) {
    let server = ready(backend).await;
    let raised = alert(&server, Pending).await;
    refused(dismiss(&server, pb::AlertFilter::default(), false).await, "filter");
    // A range without bounds says nothing.
    let range = Some(pb::TimeRange::default());
    refused(dismiss(&server, pb::AlertFilter { created_at: range, ..Default::default() }, true).await, "filter");
    refused(server.alerts().dismiss_alerts(pb::DismissAlertsRequest::default()).await, "filter");
    let both = pb::AlertFilter { open: Some(true), ..Default::default() };
    refused(acknowledge(&server, pb::AcknowledgeAlertsRequest { filter: Some(both), ..all() }).await, "all");
    refused(acknowledge(&server, pb::AcknowledgeAlertsRequest { actor: " ".into(), ..all() }).await, "actor");
    refused(
        dismiss(&server, pb::AlertFilter { statuses: vec![9], ..Default::default() }, true).await,
        "filter.statuses[0]",
    );
    assert_eq!(get(&server, &raised.id).await.unwrap().into_inner(), raised);
    server.stop().await;
}

#[on_both]
async fn whatever_happens_at_once_no_alert_is_moved_twice_and_the_feed_keeps_its_order(backend: Backend) {
    let server = ready(backend).await;
    let db = delivery::beside(&server).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let mut ids = Vec::new();
    for _ in 0..450 {
        ids.push(alert(&server, Pending).await.id);
    }
    let uuids: Vec<Uuid> = ids.iter().map(|id| id.parse().unwrap()).collect();
    let deliveries = tokio::spawn(async move {
        let mut delivered = 0;
        for ids in uuids.chunks(50) {
            delivered += delivery::deliver(&db, ids).await.len();
        }
        db.close().await;
        delivered
    });
    let mut alerts = server.alerts();
    let singly: Vec<_> = ids.iter().rev().step_by(3).cloned().collect();
    let one_by_one = tokio::spawn(async move {
        let mut acknowledged = 0;
        for id in singly {
            let request = pb::AcknowledgeAlertRequest { id, ..Default::default() };
            acknowledged += usize::from(alerts.acknowledge_alert(request).await.is_ok());
        }
        acknowledged
    });
    let bulks: Vec<_> = (0..3)
        .map(|n| {
            let mut alerts = server.alerts();
            tokio::spawn(async move {
                if n < 2 {
                    return alerts.acknowledge_alerts(all()).await.unwrap().into_inner();
                }
                let filter = Some(pb::AlertFilter { open: Some(true), ..Default::default() });
                let request = pb::DismissAlertsRequest { filter, ..Default::default() };
                alerts.dismiss_alerts(request).await.unwrap().into_inner()
            })
        })
        .collect();
    let mut moves = deliveries.await.unwrap() + one_by_one.await.unwrap();
    for bulk in bulks {
        let told = bulk.await.unwrap();
        assert_eq!(told.matched, told.moved + told.not_moved.iter().map(|count| count.alerts).sum::<i64>());
        moves += usize::try_from(told.moved).unwrap();
    }

    // What was answered is what was kept and what was told, each version once and in its order.
    let mut versions: HashMap<String, i32> = HashMap::new();
    for _ in 0..ids.len() + moves {
        let (_, alert) = watch.alert().await;
        let version = versions.entry(alert.id).or_default();
        assert_eq!(alert.version_id, *version + 1);
        *version = alert.version_id;
    }
    for id in &ids {
        let alert = get(&server, id).await.unwrap().into_inner();
        assert!(matches!(alert.status(), Acknowledged | Dismissed), "{alert:?}");
        assert_eq!(alert.version_id, versions[id]);
    }
    for id in ids.iter().step_by(40) {
        let kept = transitions::of(&server, id).await;
        assert_eq!(i32::try_from(kept.len()).unwrap(), versions[id]);
        assert!(kept.windows(2).all(|pair| pair[0].to_status() == pair[1].from_status()), "{kept:?}");
    }
    server.stop().await;
}

#[on_both]
async fn alerts_that_are_raised_meanwhile_are_not_touched(backend: Backend) {
    let server = ready(backend).await;
    for _ in 0..401 {
        alert(&server, Pending).await;
    }
    let mut alerts = server.alerts();
    let bulk = tokio::spawn(async move { alerts.acknowledge_alerts(all()).await.unwrap().into_inner() });
    let mut raised = Vec::new();
    while !bulk.is_finished() {
        raised.push(alert(&server, Pending).await);
    }
    let moved = bulk.await.unwrap();
    let first = usize::try_from(moved.matched).unwrap() - 401;
    // Those raised before the call reached the server are among them, the later ones are not.
    assert_eq!((moved.matched, moved.not_moved.len()), (moved.moved, 0));
    for (at, alert) in raised.iter().enumerate() {
        let status = get(&server, &alert.id).await.unwrap().into_inner().status();
        assert_eq!(status == Acknowledged, at < first, "{at} of {}, {first} moved", raised.len());
    }
    server.stop().await;
}

/// Waits until so many connections of the server wait for a lock, or until `done` says that it is in vain.
async fn waiting(db: &DatabaseConnection, number: i64, done: impl Fn() -> bool) {
    let sql = "SELECT count(*) AS n FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let sql = Statement::from_string(db.get_database_backend(), sql);
    eventually(&format!("{number} connections wait for a lock"), async || {
        if done() {
            return true;
        }
        let row = db.query_one_raw(sql.clone()).await.unwrap().unwrap();
        row.try_get::<i64>("", "n").unwrap() >= number
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_of_many_that_waits_is_not_told_before_the_moves_that_it_follows() {
    let server = ready(Backend::Postgres).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let mut ids: Vec<Uuid> = Vec::new();
    for _ in 0..3 {
        let raised = alert(&server, Pending).await;
        ids.push(raised.id.parse().unwrap());
        assert_eq!(watch.alert().await.1, raised);
    }
    ids.sort_unstable();
    let db = server.database.connect().await;
    // The move of many has the first alert, and waits for the second.
    let second = db.begin().await.unwrap();
    let lock = format!("SELECT 1 FROM alerts WHERE id = '{}' FOR UPDATE", ids[1]);
    second.execute_unprepared(&lock).await.unwrap();
    let mut alerts = server.alerts();
    let dismiss = pb::DismissAlertsRequest { all: true, ..Default::default() };
    let many = tokio::spawn(async move { alerts.dismiss_alerts(dismiss).await });
    waiting(&db, 1, || false).await;
    // Another one wants the third.
    let mut alerts = server.alerts();
    let id = ids[2].to_string();
    let acknowledge = pb::AcknowledgeAlertRequest { id, ..Default::default() };
    let one = tokio::spawn(async move { alerts.acknowledge_alert(acknowledge).await });
    waiting(&db, 2, || one.is_finished()).await;
    second.rollback().await.unwrap();
    assert_eq!(many.await.unwrap().unwrap().into_inner(), response(3, &[]));
    let moves = 3 + usize::from(one.await.unwrap().is_ok());
    let mut versions: HashMap<String, i32> = HashMap::new();
    for _ in 0..moves {
        let (_, alert) = watch.alert().await;
        let version = versions.entry(alert.id).or_insert(1);
        assert_eq!(alert.version_id, *version + 1);
        *version = alert.version_id;
    }
    db.close().await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_that_no_longer_matches_when_its_turn_comes_is_not_moved() {
    let server = ready(Backend::Postgres).await;
    let (first, second) = (alert(&server, Pending).await, alert(&server, Pending).await);
    let db = server.database.connect().await;
    let other = db.begin().await.unwrap();
    let change = "UPDATE alerts SET status = 'acknowledged' WHERE id";
    let change = format!("{change} = '{}'", second.id);
    other.execute_unprepared(&change).await.unwrap();
    let mut alerts = server.alerts();
    let filter = Some(pb::AlertFilter { statuses: vec![Pending.into()], ..Default::default() });
    let dismiss = pb::DismissAlertsRequest { filter, ..Default::default() };
    let many = tokio::spawn(async move { alerts.dismiss_alerts(dismiss).await });
    waiting(&db, 1, || false).await;
    other.commit().await.unwrap();
    let expected = response(1, &[(Acknowledged, 1)]);
    assert_eq!(many.await.unwrap().unwrap().into_inner(), expected);
    for (id, status) in [(first.id, Dismissed), (second.id, Acknowledged)] {
        let alert = get(&server, &id).await.unwrap().into_inner();
        assert_eq!(alert.status(), status);
    }
    db.close().await.unwrap();
    server.stop().await;
}
