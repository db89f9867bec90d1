//! Changes of one transaction come together.

use std::collections::HashSet;

use watchpost::pb::{self, Severity, Topic, watch_response::Update};

use super::{raise, server_with_a_rule};
use crate::support::{
    TestServer, Watch, always,
    database::{Backend, on_both},
    ingest, topics,
};

/// The next change, with its transaction, and whether it ends it.
async fn change(watch: &mut Watch) -> (Update, i64, bool) {
    loop {
        let response = watch.next().await;
        match response.update {
            Some(Update::Heartbeat(_)) => {
                assert_eq!((response.commit, response.commit_end), (None, false));
            }
            update => {
                let commit = response.commit.expect("a change has a commit");
                return (update.unwrap(), commit, response.commit_end);
            }
        }
    }
}

fn is_event(update: &Update) -> bool {
    matches!(update, Update::Event(_))
}

async fn acknowledge(server: &TestServer, id: &str) {
    let request = pb::AcknowledgeAlertRequest { id: id.into(), ..Default::default() };
    server.alerts().acknowledge_alert(request).await.unwrap();
}

#[on_both]
async fn an_event_and_its_alerts_are_one_commit(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    server.rule(always("another")).await;
    let mut watch = server.watch(topics(&[Topic::Events, Topic::Alerts])).await;
    let mut commits = Vec::new();
    for _ in 0..3 {
        let ingested = server.ingest("door", vec![]).await;
        assert_eq!(ingested.alerts.len(), 2);
        let (event, commit, end) = change(&mut watch).await;
        assert!(is_event(&event) && !end);
        for last in [false, true] {
            let (alert, of_alert, end) = change(&mut watch).await;
            assert!(matches!(alert, Update::Alert(_)));
            assert_eq!((of_alert, end), (commit, last));
        }
        commits.push(commit);
    }
    let mut sorted = commits.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted, commits, "commits differ, and rise");
    let id = raise(&server, 1).await.remove(0);
    for _ in 0..3 {
        change(&mut watch).await;
    }
    acknowledge(&server, &id).await;
    let (alert, commit, end) = change(&mut watch).await;
    assert!(matches!(alert, Update::Alert(_)) && end && commit > commits[2]);
    server.stop().await;
}

#[on_both]
async fn the_last_change_that_a_filter_lets_pass_ends_the_commit(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    server.rule(pb::AlertRule { severity: Severity::High.into(), ..always("high") }).await;
    server.rule(always("last")).await;
    let high = pb::AlertWatchFilter { severities: vec![Severity::High.into()], ..Default::default() };
    let mut events = server.watch(topics(&[Topic::Events])).await;
    let mut high =
        server.watch(pb::WatchRequest { alert_filter: Some(high), ..topics(&[Topic::Alerts, Topic::Events]) }).await;
    for _ in 0..2 {
        raise(&server, 1).await;
        let (event, commit, end) = change(&mut events).await;
        assert!(is_event(&event) && end);
        let (event, same, end) = change(&mut high).await;
        assert!(is_event(&event) && same == commit && !end);
        let (alert, same, end) = change(&mut high).await;
        assert!(matches!(alert, Update::Alert(_)) && same == commit && end);
    }
    server.stop().await;
}

#[on_both]
async fn commits_are_never_mixed_nor_parted(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    let watch = server.watch(topics(&[Topic::Events, Topic::Alerts])).await;
    let start = watch.cursor.clone();
    let ingests = (0..120).map(|_| {
        let mut events = server.events();
        tokio::spawn(async move { events.ingest_event(ingest("door", vec![])).await.unwrap() })
    });
    for ingested in ingests.collect::<Vec<_>>() {
        ingested.await.unwrap();
    }
    // Live, and again from the table.
    let again = pb::WatchRequest { cursor: start, ..topics(&[Topic::Events, Topic::Alerts]) };
    let mut watches = [watch, server.watch(again).await];
    let mut seen = Vec::new();
    for watch in &mut watches {
        let mut changes = Vec::new();
        let (mut ended, mut open) = (HashSet::new(), None);
        for _ in 0..240 {
            let (_, commit, end) = change(watch).await;
            assert!(open.is_none_or(|open| open == commit), "a commit is complete before the next");
            open = (!end).then_some(commit);
            assert!(!end || ended.insert(commit), "a commit ends once");
            changes.push((commit, end));
        }
        assert_eq!(open, None);
        assert!(ended.len() > 1);
        seen.push(changes);
    }
    assert_eq!(seen[0], seen[1]);
    // Whoever breaks off within a commit is sent the rest of it.
    let mut watch = server
        .watch(pb::WatchRequest { cursor: watches[1].cursor.clone(), ..topics(&[Topic::Events, Topic::Alerts]) })
        .await;
    raise(&server, 1).await;
    let (_, commit, end) = change(&mut watch).await;
    assert!(!end);
    let mut rest = server.watch(pb::WatchRequest { cursor: watch.cursor, ..topics(&[]) }).await;
    let (rest, same, end) = change(&mut rest).await;
    assert!(matches!(rest, Update::Alert(_)) && same == commit && end);
    server.stop().await;
}
