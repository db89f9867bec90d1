//! Watches that cannot be.

use watchpost::pb::{self, Topic};

use super::{HUGE, ready, refused};
use crate::support::{
    TestServer,
    calls::strings,
    database::{Backend, on_both},
    topics,
};

#[on_both]
async fn a_bad_watch_is_refused(backend: Backend) {
    let server = ready(backend).await;
    let other = TestServer::start(backend).await;
    let foreign = other.watch(topics(&[])).await.cursor;
    other.stop().await;
    let own = server.watch(topics(&[])).await.cursor;
    let any = || topics(&[Topic::Alerts]);
    let cursor = |cursor: &str| pb::WatchRequest { cursor: cursor.into(), ..any() };
    let alerts = |filter| pb::WatchRequest { alert_filter: Some(filter), ..any() };
    let filter = pb::AlertWatchFilter::default;
    let every = |seconds, nanos| pb::WatchRequest {
        heartbeat_interval: Some(prost_types::Duration { seconds, nanos }),
        ..any()
    };
    let mut cases = vec![
        (pb::WatchRequest { topics: vec![0], ..any() }, "topics[0]"),
        (pb::WatchRequest { topics: vec![1, 99], ..any() }, "topics[1]"),
        (alerts(pb::AlertWatchFilter { severities: vec![5], ..filter() }), "alert_filter.severities[0]"),
        (alerts(pb::AlertWatchFilter { statuses: vec![1, 0], ..filter() }), "alert_filter.statuses[1]"),
        (alerts(pb::AlertWatchFilter { rule_ids: strings(&["x"]), ..filter() }), "alert_filter.rule_ids[0]"),
        (alerts(pb::AlertWatchFilter { camera_ids: strings(&[""]), ..filter() }), "alert_filter.camera_ids[0]"),
        (cursor(&foreign), "cursor"),
    ];
    for (seconds, nanos) in
        [(0, 0), (0, 99_999_999), (300, 1), (-1, 0), (i64::MAX, 0), (i64::MIN, i32::MIN), (1, i32::MAX), (1, -1)]
    {
        cases.push((every(seconds, nanos), "heartbeat_interval"));
    }
    for garbage in
        [" ", "x", "AAAA", "ü", "\0", &own[1..], &own[..own.len() - 1], &"A".repeat(HUGE), &(own.clone() + "=")]
    {
        cases.push((cursor(garbage), "cursor"));
    }
    for (request, path) in cases {
        let reply = server.monitor().watch(request).await;
        refused(reply.map(|_| tonic::Response::new(())), path);
    }
    // None of them takes a place away, and the server goes on.
    server.watch(cursor(&own)).await;
    server.stop().await;
}
