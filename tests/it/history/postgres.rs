//! Clusters of PostgreSQL whose files are put back, and whose transaction ids jump.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, Statement};
use watchpost::{
    db::{self, Db},
    feed::retention::{Retention, prune},
    pb::{Topic, WatchStart},
};

use super::{
    alerts_after, alerts_from, assert_refused, assert_tells, cursor_now, ends_replaced, execute, new_alerts,
    outcomes_once, raise, serve, serve_with_a_rule,
};
use crate::support::{
    always,
    database::{Backend, Cluster, TestDatabase},
    topics,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_that_jump_ahead_lose_nothing() {
    let cluster = Cluster::start().await;
    let url = cluster.url("postgres");
    let server = serve_with_a_rule(&url).await;
    raise(&server, 2).await;
    let before = cursor_now(&server).await;
    let seen = raise(&server, 1).await;
    server.stop().await;
    cluster.halt().await;
    // Within the first page of the states of transactions, which is there.
    cluster.reset_wal("-x 30000 -l 000000010000000000000042").await;
    cluster.resume().await;

    let (one, two) = (serve(&url).await, serve(&url).await);
    let raised = raise(&one, 2).await;
    let mut resumed = two.watch(alerts_after(&before)).await;
    assert_eq!(new_alerts(&mut resumed, 3).await, [seen, raised].concat());
    assert_tells(&one, &two).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_ahead_of_all_ids_are_another_history() {
    let database = TestDatabase::migrated(Backend::Postgres).await;
    let server = serve_with_a_rule(database.url()).await;
    let past = raise(&server, 2).await;
    let before = cursor_now(&server).await;
    server.stop().await;
    let db = database.connect().await;
    let ahead = "UPDATE changes SET xid = (xid::text::bigint + 1000000)::text::xid8";
    execute(&db, &[ahead]).await;

    let server = serve(database.url()).await;
    assert_refused(&server, &before).await;
    assert_tells(&server, &server).await;
    let mut all = server.watch(alerts_from(WatchStart::Earliest)).await;
    assert_eq!(new_alerts(&mut all, 2).await, past);
    // What has been read can be pruned, in its order.
    let settings =
        db::Settings { url: database.url().to_string(), connections: 4, sqlite_synchronous: db::Synchronous::Full };
    let pruner = Db::connect(&settings).await.unwrap();
    let keep_two = Retention { max_age: Duration::from_hours(1), max_changes: 2 };
    while prune(&pruner, keep_two).await.unwrap() > 0 {}
    pruner.close().await;
    server.stop().await;
    let server = serve(database.url()).await;
    let own = cursor_now(&server).await;
    let raised = raise(&server, 1).await;
    let mut resumed = server.watch(alerts_after(&own)).await;
    assert_eq!(new_alerts(&mut resumed, 1).await, raised);
    server.stop().await;

    // The default of the column goes with the table that has the offset.
    let default = "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'changes'::regclass \
        AND pg_get_expr(adbin, adrelid) LIKE '%xid8%'";
    let rows = db.query_all_raw(Statement::from_string(DbBackend::Postgres, default)).await.unwrap();
    assert_eq!(rows.len(), 1);
    db.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_put_back_are_noticed_by_servers_that_start() {
    let cluster = Cluster::start().await;
    let url = cluster.url("postgres");
    let server = serve_with_a_rule(&url).await;
    raise(&server, 2).await;
    let before = cursor_now(&server).await;
    server.stop().await;
    cluster.halt().await;
    cluster.save_files().await;
    cluster.resume().await;
    let server = serve(&url).await;
    raise(&server, 3).await;
    let after = cursor_now(&server).await;
    server.stop().await;
    cluster.halt().await;
    cluster.put_files_back().await;
    cluster.resume().await;

    let server = serve(&url).await;
    assert_refused(&server, &after).await;
    let raised = raise(&server, 6).await;
    assert_refused(&server, &after).await;
    // Up to the copy the history is the same.
    let mut resumed = server.watch(alerts_after(&before)).await;
    assert_eq!(new_alerts(&mut resumed, 6).await, raised);
    assert_tells(&server, &server).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_put_back_under_running_servers_end_their_watches() {
    let cluster = Cluster::start().await;
    let url = cluster.url("postgres");
    let (one, two) = (serve_with_a_rule(&url).await, serve(&url).await);
    raise(&one, 2).await;
    let mut before = [one.watch(topics(&[Topic::Alerts])).await, two.watch(topics(&[Topic::Alerts])).await];
    cluster.halt().await;
    cluster.save_files().await;
    cluster.resume().await;

    // A restart that loses nothing ends no watch.
    let raised = outcomes_once(&one, |_| true).await;
    let raised: Vec<_> = raised.into_iter().filter_map(|outcome| outcome.alert_id).collect();
    for watch in &mut before {
        assert_eq!(new_alerts(watch, 1).await, raised);
    }
    one.rule(always("lost")).await;
    cluster.halt().await;
    cluster.put_files_back().await;
    cluster.resume().await;
    for watch in &mut before {
        ends_replaced(watch).await;
    }
    for server in [&one, &two] {
        for watch in &before {
            assert_refused(server, &watch.cursor).await;
        }
    }
    assert_tells(&one, &two).await;
    assert_tells(&two, &one).await;
    one.stop().await;
    two.stop().await;
}
