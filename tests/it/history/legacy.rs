//! Restarts, cursors of older servers, and changes that are taken back under a running server: on both databases.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use prost::Message;
use sea_orm::{EntityTrait, prelude::Uuid};
use watchpost::{entity::feed_state, pb::Topic};

use super::{
    alerts_after, assert_refused, assert_tells, cursor_now, ends_replaced, execute, history_id, new_alerts,
    outcomes_once, raise,
};
use crate::support::{
    TestServer, always,
    database::{Backend, TestDatabase, on_both},
    topics,
};

/// A cursor as it was before there were incarnations.
#[derive(Clone, PartialEq, Message)]
struct OldCursor {
    #[prost(bytes = "vec", tag = "1")]
    database: Vec<u8>,
    #[prost(int64, tag = "2")]
    xid: i64,
    #[prost(int64, tag = "3")]
    seq: i64,
    #[prost(int64, tag = "4")]
    seen_end: i64,
}

impl OldCursor {
    fn text(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.encode_to_vec())
    }

    /// What an older server would make of the same place.
    fn of(cursor: &str) -> Self {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).unwrap();
        Self::decode(bytes.as_slice()).unwrap()
    }
}

async fn database_id(database: &TestDatabase) -> Uuid {
    let db = database.connect().await;
    let state = feed_state::Entity::find().one(&db).await.unwrap().unwrap();
    db.close().await.unwrap();
    state.database_id
}

#[on_both]
async fn cursors_outlive_starts_in_which_nothing_happens(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(always("everything")).await;
    let raised = raise(&server, 1).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let idle = watch.cursor.clone();
    let more = raise(&server, 1).await;
    assert_eq!(new_alerts(&mut watch, 1).await, more);
    let mut cursors = vec![watch.cursor.clone()];
    drop(watch);
    let mut ids = vec![history_id(&server).await];
    let mut server = server;
    for _ in 0..3 {
        let database = server.stop().await;
        server = TestServer::start_with(database, |_| {}).await;
        cursors.push(cursor_now(&server).await);
        ids.push(history_id(&server).await);
    }
    let last = raise(&server, 1).await;
    for cursor in &cursors {
        let mut watch = server.watch(alerts_after(cursor)).await;
        assert_eq!(new_alerts(&mut watch, 1).await, last);
    }
    let mut watch = server.watch(alerts_after(&idle)).await;
    assert_eq!(new_alerts(&mut watch, 2).await, [more, last].concat());
    assert!(!raised.is_empty());
    ids.dedup();
    assert_eq!(ids.len(), 4, "each start has a history id of its own");
    server.stop().await;
}

#[on_both]
async fn cursors_of_older_servers_are_good_up_to_the_first_start(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    let xid = if backend == Backend::Postgres { 700 } else { 0 };
    for key in ["a", "b"] {
        let message = "INSERT INTO changes (topic, key, message) VALUES ('alerts', $, '')";
        execute(&db, &[&message.replace('$', &format!("'{key}'"))]).await;
    }
    db.close().await.unwrap();
    let id = database_id(&database).await.as_bytes().to_vec();
    let old = |seq| OldCursor { database: id.clone(), xid, seq, seen_end: 0 };
    let server = TestServer::start_with(database, |_| {}).await;
    server.camera("door").await;
    server.rule(always("everything")).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let raised = raise(&server, 1).await;
    assert_eq!(new_alerts(&mut watch, 1).await, raised);
    for seq in [0, 1, 2] {
        let mut resumed = server.watch(alerts_after(&old(seq).text())).await;
        assert_eq!(new_alerts(&mut resumed, 1).await, raised);
    }
    // An older server that ran on beside this one, or a copy of the database, may have given these.
    assert_refused(&server, &old(3).text()).await;
    assert_refused(&server, &OldCursor::of(&watch.cursor).text()).await;
    let ahead = OldCursor { xid: 1 << 40, ..old(1) };
    assert_refused(&server, &ahead.text()).await;
    server.stop().await;
}

#[on_both]
async fn changes_that_are_taken_back_under_a_running_server_end_its_watches(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(always("everything")).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let mut gpus = server.watch(pb_heartbeats()).await;
    let raised = raise(&server, 3).await;
    assert_eq!(new_alerts(&mut watch, 3).await, raised);
    let cursor = watch.cursor.clone();
    let before = history_id(&server).await;
    let db = server.database.connect().await;
    execute(&db, &["DELETE FROM changes WHERE seq > 4", "UPDATE alert_rules SET name = 'restored'"]).await;
    db.close().await.unwrap();
    ends_replaced(&mut watch).await;
    ends_replaced(&mut gpus).await;
    assert_refused(&server, &cursor).await;
    assert_ne!(history_id(&server).await, before);
    // The rules were read again.
    outcomes_once(&server, |outcomes| outcomes.iter().any(|outcome| outcome.rule_name == "restored")).await;
    assert_tells(&server, &server).await;
    server.stop().await;
}

/// A watch that looks at nothing of the feed.
fn pb_heartbeats() -> watchpost::pb::WatchRequest {
    watchpost::pb::WatchRequest {
        heartbeat_interval: Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 }),
        ..topics(&[Topic::GpuStats])
    }
}
