//! Where a watch starts: now, with a snapshot, with the oldest change, after a cursor.

use std::{collections::HashSet, time::Duration};

use tonic::Code;
use watchpost::{
    db::{self, Db},
    feed::retention::{Retention, prune},
    pb::{self, AlertChangeKind, Topic, WatchStart, watch_response::Update},
};

use super::{KEEP_NOTHING, alerts_after, new_alerts, raise, server_with_a_rule};
use crate::support::{
    TestServer, Watch, always,
    database::{self, Backend, on_both},
    eventually, reason, topics,
};

fn from(start: WatchStart) -> pb::WatchRequest {
    pb::WatchRequest { start: start.into(), ..topics(&[Topic::Alerts]) }
}

/// What a snapshot holds of alerts, in order.
async fn snapshot(watch: &mut Watch) -> Vec<pb::Alert> {
    let mut alerts = Vec::new();
    loop {
        match watch.update().await {
            Update::Alert(change) => {
                assert_eq!(change.kind(), AlertChangeKind::Existing);
                alerts.push(change.alert.unwrap());
            }
            Update::SnapshotEnd(end) => {
                assert_eq!(end.alerts, i64::try_from(alerts.len()).unwrap());
                return alerts;
            }
            other => panic!("not a part of a snapshot: {other:?}"),
        }
    }
}

fn ids(alerts: &[pb::Alert]) -> Vec<String> {
    alerts.iter().map(|alert| alert.id.clone()).collect()
}

async fn open(server: &TestServer) -> Db {
    let settings = db::Settings {
        url: server.database.url().to_string(),
        connections: 4,
        sqlite_synchronous: db::Synchronous::Full,
    };
    Db::connect(&settings).await.unwrap()
}

async fn status(server: &TestServer) -> pb::GetFeedStatusResponse {
    let request = pb::GetFeedStatusRequest {};
    server.monitor().get_feed_status(request).await.unwrap().into_inner()
}

/// A transaction of somebody else that has written, and holds the feed back on PostgreSQL. SQLite
/// has one writer, whom it would hold up.
async fn running(server: &TestServer, backend: Backend) -> Option<sea_orm::DatabaseTransaction> {
    use sea_orm::{ConnectionTrait, TransactionTrait};

    if backend == Backend::Sqlite {
        return None;
    }
    let db = server.database.connect().await;
    let tx = db.begin().await.unwrap();
    tx.execute_unprepared("UPDATE feed_state SET id = id WHERE id < 0; SELECT pg_current_xact_id()").await.unwrap();
    Some(tx)
}

#[on_both]
async fn a_snapshot_holds_what_is_open_and_what_follows_is_live(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    let raised = raise(&server, 5).await;
    let (acknowledged, dismissed) = (raised[1].clone(), raised[3].clone());
    let request = pb::AcknowledgeAlertRequest { id: acknowledged, ..Default::default() };
    server.alerts().acknowledge_alert(request).await.unwrap();
    let request = pb::DismissAlertRequest { id: dismissed, ..Default::default() };
    server.alerts().dismiss_alert(request).await.unwrap();

    let mut watch = server.watch(from(WatchStart::Snapshot)).await;
    let open = snapshot(&mut watch).await;
    assert_eq!(ids(&open), [0, 2, 4].map(|at: usize| raised[at].clone()));
    for alert in &open {
        let request = pb::GetAlertRequest { id: alert.id.clone() };
        assert_eq!(&server.alerts().get_alert(request).await.unwrap().into_inner(), alert);
    }
    let cursor = watch.cursor.clone();
    let later = raise(&server, 2).await;
    assert_eq!(new_alerts(&mut watch, 2).await, later);
    let mut resumed = server.watch(alerts_after(&cursor)).await;
    assert_eq!(new_alerts(&mut resumed, 2).await, later);

    let nothing = pb::AlertWatchFilter { camera_ids: vec!["garage".into()], ..Default::default() };
    let nothing = pb::WatchRequest { alert_filter: Some(nothing), ..from(WatchStart::Snapshot) };
    assert_eq!(snapshot(&mut server.watch(nothing).await).await, []);
    let events = pb::WatchRequest { topics: vec![Topic::Events.into()], ..from(WatchStart::Snapshot) };
    assert_eq!(snapshot(&mut server.watch(events).await).await, []);
    server.stop().await;
}

#[on_both]
async fn between_snapshot_and_live_nothing_is_missing_and_nothing_comes_twice(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    let mut writers = Vec::new();
    for _ in 0..4 {
        let mut events = server.events();
        writers.push(tokio::spawn(async move {
            let mut raised = Vec::new();
            for _ in 0..60 {
                let request = crate::support::ingest("door", vec![]);
                let ingested = events.ingest_event(request).await.unwrap().into_inner();
                raised.push(ingested.alerts[0].id.clone());
            }
            raised
        }));
    }
    let mut watches = Vec::new();
    for _ in 0..6 {
        let mut watch = server.watch(from(WatchStart::Snapshot)).await;
        let seen = ids(&snapshot(&mut watch).await);
        // Another one goes on with the cursor of the end of the snapshot.
        let resumed = server.watch(alerts_after(&watch.cursor)).await;
        watches.push((seen.clone(), watch));
        watches.push((seen, resumed));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut raised = HashSet::new();
    for writer in writers {
        raised.extend(writer.await.unwrap());
    }
    for (mut seen, mut watch) in watches {
        let left = raised.len() - seen.len();
        seen.extend(new_alerts(&mut watch, left).await);
        assert_eq!(seen.len(), raised.len());
        assert_eq!(seen.into_iter().collect::<HashSet<_>>(), raised);
    }
    server.stop().await;
}

#[on_both]
async fn what_waits_behind_a_running_transaction_is_in_the_snapshot_and_not_live_again(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    let tx = running(&server, backend).await;
    let raised = raise(&server, 3).await;
    let mut now = server.watch(topics(&[Topic::Alerts])).await;
    let mut watch = server.watch(from(WatchStart::Snapshot)).await;
    assert_eq!(ids(&snapshot(&mut watch).await), raised);
    let cursors = [now.cursor.clone(), watch.cursor.clone()];
    let later = raise(&server, 2).await;
    if let Some(tx) = tx {
        tx.rollback().await.unwrap();
    }
    assert_eq!(new_alerts(&mut now, 2).await, later);
    assert_eq!(new_alerts(&mut watch, 2).await, later);
    for cursor in cursors {
        let mut resumed = server.watch(alerts_after(&cursor)).await;
        assert_eq!(new_alerts(&mut resumed, 1).await, later[..1]);
        // A cursor in between still knows what was before.
        let mut resumed = server.watch(alerts_after(&resumed.cursor)).await;
        assert_eq!(new_alerts(&mut resumed, 1).await, later[1..]);
    }
    server.stop().await;
}

#[on_both]
async fn from_the_earliest_on_everything_that_is_held_comes(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    let raised = raise(&server, 3).await;
    let mut watch = server.watch(from(WatchStart::Earliest)).await;
    assert_eq!(new_alerts(&mut watch, 3).await, raised);
    let later = raise(&server, 1).await;
    assert_eq!(new_alerts(&mut watch, 1).await, later);
    let mut now = server.watch(from(WatchStart::Now)).await;
    let latest = raise(&server, 1).await;
    assert_eq!(new_alerts(&mut now, 1).await, latest);

    let db = open(&server).await;
    eventually("all changes are pruned", async || {
        prune(&db, KEEP_NOTHING).await.unwrap() == 0 && status(&server).await.changes == 0
    })
    .await;
    db.close().await;
    let mut watch = server.watch(from(WatchStart::Earliest)).await;
    let after = raise(&server, 1).await;
    assert_eq!(new_alerts(&mut watch, 1).await, after);
    server.stop().await;
}

#[on_both]
async fn the_status_of_the_feed_tells_what_is_held(backend: Backend) {
    let database = database::TestDatabase::migrated(backend).await;
    let server = TestServer::start_with(database, |settings| {
        settings.feed_retention = Duration::from_hours(1);
        settings.feed_max_changes = 5_000;
    })
    .await;
    let empty = status(&server).await;
    assert_eq!((empty.changes, empty.deleted_changes, empty.max_changes), (0, 0, 5_000));
    assert_eq!(empty.retention.unwrap().seconds, 3600);
    assert_eq!((&empty.oldest_recorded_at, &empty.newest_recorded_at), (&None, &None));
    server.camera("door").await;
    server.rule(always("everything")).await;
    raise(&server, 4).await;
    // A camera, a rule, and four times an event and an alert.
    let full = status(&server).await;
    assert_eq!((full.changes, full.deleted_changes), (10, 0));
    let time = |time: Option<prost_types::Timestamp>| std::time::SystemTime::try_from(time.unwrap()).unwrap();
    assert!(time(full.oldest_recorded_at) <= time(full.newest_recorded_at));

    // All but the newest three are deleted; watches know.
    let db = open(&server).await;
    let keep_three = Retention { max_age: Duration::from_hours(1), max_changes: 3 };
    let mut deleted = 0;
    eventually("seven changes are pruned", async || {
        deleted += prune(&db, keep_three).await.unwrap();
        deleted >= 7
    })
    .await;
    db.close().await;
    assert_eq!(deleted, 7);
    let left = status(&server).await;
    assert_eq!((left.changes, left.deleted_changes), (3, 7));
    let expired = server.monitor().watch(alerts_after(&full.earliest_cursor)).await.unwrap_err();
    assert_eq!((expired.code(), reason(&expired)), (Code::OutOfRange, "CURSOR_EXPIRED".into()));
    let details = tonic_types::StatusExt::get_error_details(&expired);
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!(metadata["earliest_cursor"], left.earliest_cursor);
    let held = pb::WatchRequest { cursor: left.earliest_cursor, ..topics(&[]) };
    let mut held = server.watch(held).await;
    for _ in 0..3 {
        held.update().await;
    }
    // The end of the feed, as it is told, is where nothing is left.
    let at_the_end = async || status(&server).await.newest_cursor == held.cursor;
    eventually("the newest cursor is that of the watch", at_the_end).await;
    server.stop().await;
}
