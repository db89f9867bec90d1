//! Several processes on one PostgreSQL: each start is a part of one history.

use watchpost::pb::Topic;

use super::{alerts_after, assert_tells, cursor_now, new_alerts, raise, serve, serve_with_a_rule};
use crate::support::{
    TestServer,
    database::{Backend, TestDatabase},
    topics,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_ends_neither_watches_nor_cursors_of_the_first() {
    let database = TestDatabase::migrated(Backend::Postgres).await;
    let one = serve_with_a_rule(database.url()).await;
    let mut live = one.watch(topics(&[Topic::Alerts])).await;
    let mut cursors = vec![live.cursor.clone()];
    let mut all = Vec::new();
    let mut others: Vec<TestServer> = Vec::new();
    for _ in 0..3 {
        let raised = raise(&one, 2).await;
        assert_eq!(new_alerts(&mut live, 2).await, raised);
        all.extend(raised);
        cursors.push(live.cursor.clone());
        let other = serve(database.url()).await;
        cursors.push(cursor_now(&other).await);
        let raised = raise(&other, 1).await;
        assert_eq!(new_alerts(&mut live, 1).await, raised);
        all.extend(raised);
        cursors.push(live.cursor.clone());
        others.push(other);
    }
    assert_tells(&one, &others[2]).await;
    assert_tells(&others[0], &one).await;
    let last = raise(&others[1], 1).await;
    for server in others.iter().chain([&one]) {
        for cursor in &cursors {
            let mut resumed = server.watch(alerts_after(cursor)).await;
            let mut told = new_alerts(&mut resumed, 1).await;
            while told.last() != last.last() {
                told.extend(new_alerts(&mut resumed, 1).await);
            }
        }
        let mut resumed = server.watch(alerts_after(&cursors[0])).await;
        assert_eq!(new_alerts(&mut resumed, all.len()).await, all);
    }
    drop(live);
    for server in others {
        server.stop().await;
    }
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_that_are_given_while_processes_start_are_good() {
    let database = TestDatabase::migrated(Backend::Postgres).await;
    let one = serve_with_a_rule(database.url()).await;
    let starting = async {
        for _ in 0..6 {
            serve(database.url()).await.stop().await;
        }
    };
    let writing = async {
        let mut cursors = Vec::new();
        for _ in 0..150 {
            cursors.push(cursor_now(&one).await);
            raise(&one, 1).await;
        }
        cursors
    };
    let ((), cursors) = tokio::join!(starting, writing);
    let last = raise(&one, 1).await;
    for cursor in &cursors[cursors.len() - 40..] {
        let mut resumed = one.watch(alerts_after(cursor)).await;
        let mut told = new_alerts(&mut resumed, 1).await;
        while told.last() != last.last() {
            told.extend(new_alerts(&mut resumed, 1).await);
        }
    }
    for cursor in &cursors {
        one.watch(alerts_after(cursor)).await;
    }
    one.stop().await;
}
