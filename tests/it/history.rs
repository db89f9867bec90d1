//! Databases that are restored, put back, promoted or moved: what was watched before is not taken for what is now.

mod files;
mod legacy;
mod postgres;
mod processes;
mod promotion;
mod restore;

use std::collections::HashMap;

use sea_orm::{ConnectionTrait, DatabaseConnection};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use watchpost::pb::{self, AlertChangeKind, Topic, WatchStart, watch_response::Update};

use crate::support::{
    PATIENCE, TestServer, Watch, always, database::TestDatabase, eventually_some, ingest, reason, topics,
};

/// A server on the database at this URL.
async fn serve(url: &str) -> TestServer {
    TestServer::start_with(TestDatabase::at(url), |_| {}).await
}

/// The same, with the camera `door` and a rule that always fires.
async fn serve_with_a_rule(url: &str) -> TestServer {
    let server = serve(url).await;
    server.camera("door").await;
    server.rule(always("everything")).await;
    server
}

/// Raises alerts. Gives their ids.
async fn raise(server: &TestServer, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let raised = server.ingest("door", vec![]).await.alerts;
        ids.extend(raised.into_iter().map(|alert| alert.id));
    }
    ids
}

/// The ids of the next alerts, which must be new ones.
async fn new_alerts(watch: &mut Watch, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let (kind, alert) = watch.alert().await;
        assert_eq!(kind, AlertChangeKind::Created);
        ids.push(alert.id);
    }
    ids
}

fn alerts_after(cursor: &str) -> pb::WatchRequest {
    pb::WatchRequest { cursor: cursor.into(), ..topics(&[Topic::Alerts]) }
}

fn alerts_from(start: WatchStart) -> pb::WatchRequest {
    pb::WatchRequest { start: start.into(), ..topics(&[Topic::Alerts]) }
}

/// The cursor of a watch that has seen all that there is now.
async fn cursor_now(server: &TestServer) -> String {
    server.watch(topics(&[Topic::Alerts])).await.cursor
}

/// Checks that a status says that the history was replaced, and how to begin anew.
fn assert_replaced(status: &Status) {
    assert_eq!((status.code(), reason(status)), (Code::FailedPrecondition, "HISTORY_REPLACED".into()));
    let details = status.get_error_details();
    let metadata: &HashMap<_, _> = &details.error_info().unwrap().metadata;
    assert_eq!(metadata["start"], "WATCH_START_SNAPSHOT");
    assert!(!metadata["history_id"].is_empty());
}

/// Checks that a cursor is refused because the history was replaced.
async fn assert_refused(server: &TestServer, cursor: &str) {
    let refused = server.monitor().watch(alerts_after(cursor)).await;
    assert_replaced(&refused.map(|_| ()).unwrap_err());
}

/// Waits until a watch ends because the history was replaced.
async fn ends_replaced(watch: &mut Watch) {
    let ending = async {
        loop {
            if let Err(status) = watch.try_next().await {
                return status;
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ending).await;
    assert_replaced(&ended.expect("the watch ends"));
}

/// Checks that a server tells everything that happens from now on, once and with cursors that are good.
async fn assert_tells(server: &TestServer, other: &TestServer) {
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let start = watch.cursor.clone();
    let mut raised = raise(other, 2).await;
    assert_eq!(new_alerts(&mut watch, raised.len()).await, raised);
    let middle = watch.cursor.clone();
    let more = raise(other, 1).await;
    raised.extend(more.clone());
    assert_eq!(new_alerts(&mut watch, more.len()).await, more);
    for (cursor, expected) in [(start, raised), (middle, more)] {
        let mut resumed = server.watch(alerts_after(&cursor)).await;
        assert_eq!(new_alerts(&mut resumed, expected.len()).await, expected);
    }
}

/// The id of the present stretch of history, as a heartbeat tells it.
async fn history_id(server: &TestServer) -> String {
    let mut responses = server.monitor().watch(pb::WatchRequest::default()).await.unwrap().into_inner();
    let first = responses.message().await.unwrap().unwrap();
    let Some(Update::Heartbeat(heartbeat)) = first.update else {
        panic!("not a heartbeat: {first:?}");
    };
    let request = pb::GetFeedStatusRequest {};
    let status = server.monitor().get_feed_status(request).await.unwrap();
    assert_eq!(status.into_inner().history_id, heartbeat.history_id);
    heartbeat.history_id
}

async fn execute(db: &DatabaseConnection, statements: &[&str]) {
    for statement in statements {
        db.execute_unprepared(statement).await.unwrap();
    }
}

/// Ingests events, whatever becomes of them, until what the rules say of one is as it should be.
async fn outcomes_once(server: &TestServer, is_right: impl Fn(&[pb::RuleOutcome]) -> bool) -> Vec<pb::RuleOutcome> {
    eventually_some("the rules are as they should be", async || {
        let ingested = server.events().ingest_event(ingest("door", vec![])).await.ok()?;
        let outcomes = ingested.into_inner().rule_outcomes;
        is_right(&outcomes).then_some(outcomes)
    })
    .await
}

/// Waits until a rule is in force on a server.
async fn knows_rule(server: &TestServer, id: &str) {
    outcomes_once(server, |outcomes| outcomes.iter().any(|outcome| outcome.rule_id == id)).await;
}

/// Waits until a rule is in force on a server no more.
async fn forgets_rule(server: &TestServer, id: &str) {
    outcomes_once(server, |outcomes| outcomes.iter().all(|outcome| outcome.rule_id != id)).await;
}
