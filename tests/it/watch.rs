//! `MonitorService.Watch`: what the stream promises.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use sea_orm::{ConnectionTrait, TransactionTrait};
use tonic::Code;
use watchpost::{
    db::{self, Db},
    feed,
    pb::{self, AlertChangeKind, Topic, watch_response::Update},
};

use crate::support::{
    self, TestServer, Watch, always, connect,
    database::{Backend, on_both},
    detection, eventually, field, ingest, middle, quiet, reason, topics,
};

mod commits;
mod held;
mod starts;

const KEEP_NOTHING: feed::retention::Retention =
    feed::retention::Retention { max_age: Duration::ZERO, max_changes: u64::MAX };

fn alerts_after(cursor: &str) -> pb::WatchRequest {
    pb::WatchRequest { cursor: cursor.into(), ..topics(&[Topic::Alerts]) }
}

#[expect(clippy::unnecessary_wraps, reason = "a field of a message")]
fn heartbeats_every(millis: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 })
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

async fn raise(server: &TestServer, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let raised = server.ingest("door", vec![]).await.alerts;
        ids.extend(raised.into_iter().map(|alert| alert.id));
    }
    ids
}

async fn server_with_a_rule(backend: Backend) -> TestServer {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(always("everything")).await;
    server
}

#[on_both]
async fn every_watch_sees_every_alert_once_and_in_order(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    let mut watches = Vec::new();
    for _ in 0..5 {
        watches.push(server.watch(topics(&[Topic::Alerts])).await);
    }
    let events = (0..40).map(|_| {
        let mut events = server.events();
        tokio::spawn(async move { events.ingest_event(ingest("door", vec![])).await.unwrap().into_inner() })
    });
    let mut raised = HashSet::new();
    for event in events.collect::<Vec<_>>() {
        raised.extend(event.await.unwrap().alerts.into_iter().map(|alert| alert.id));
    }
    let first = new_alerts(&mut watches[0], 40).await;
    assert_eq!(first.iter().cloned().collect::<HashSet<_>>(), raised);
    for watch in &mut watches[1..] {
        assert_eq!(new_alerts(watch, 40).await, first);
    }
    server.stop().await;
}

#[on_both]
async fn a_watch_resumes_without_a_gap(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let start = watch.cursor.clone();
    let raised = raise(&server, 6).await;
    assert_eq!(new_alerts(&mut watch, 2).await, raised[..2]);
    let cursor = watch.cursor.clone();
    drop(watch);

    let mut watch = server.watch(alerts_after(&cursor)).await;
    assert_eq!(new_alerts(&mut watch, 4).await, raised[2..]);
    // From another process' point of view too: a new server reads the table.
    let database = server.stop().await;
    let server = TestServer::start_with(database, |_| {}).await;
    let mut watch = server.watch(alerts_after(&cursor)).await;
    assert_eq!(new_alerts(&mut watch, 4).await, raised[2..]);
    let mut watch = server.watch(alerts_after(&start)).await;
    assert_eq!(new_alerts(&mut watch, 6).await, raised);
    let later = raise(&server, 1).await;
    assert_eq!(new_alerts(&mut watch, 1).await, later);
    server.stop().await;
}

#[on_both]
async fn a_watch_from_now_does_not_see_what_was_before(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    raise(&server, 3).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let raised = raise(&server, 1).await;
    assert_eq!(new_alerts(&mut watch, 1).await, raised);
    server.stop().await;
}

#[on_both]
async fn a_watch_sees_what_it_asks_for(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    server.camera("garage").await;
    let high = pb::AlertRule { severity: pb::Severity::High.into(), ..always("high") };
    let high = server.rule(high).await;
    let filter = |filter| pb::WatchRequest { alert_filter: Some(filter), ..topics(&[Topic::Alerts]) };
    let by_severity = pb::AlertWatchFilter { severities: vec![pb::Severity::High.into()], ..Default::default() };
    let by_rule = pb::AlertWatchFilter { rule_ids: vec![high.id.to_uppercase()], ..Default::default() };
    let by_camera = pb::AlertWatchFilter { camera_ids: vec!["garage".into()], ..Default::default() };
    let by_status = pb::AlertWatchFilter { statuses: vec![pb::AlertStatus::Dismissed.into()], ..Default::default() };
    let mut by_severity = server.watch(filter(by_severity)).await;
    let mut by_rule = server.watch(filter(by_rule)).await;
    let mut by_camera = server.watch(filter(by_camera)).await;
    let mut by_status = server.watch(filter(by_status)).await;

    let door = server.ingest("door", vec![]).await.alerts;
    let garage = server.ingest("garage", vec![]).await.alerts;
    let of_high =
        |alerts: &[pb::Alert]| alerts.iter().find(|alert| alert.rule_id == Some(high.id.clone())).cloned().unwrap();
    for watch in [&mut by_severity, &mut by_rule] {
        assert_eq!(watch.alert().await.1, of_high(&door));
        assert_eq!(watch.alert().await.1, of_high(&garage));
    }
    assert_eq!([by_camera.alert().await.1, by_camera.alert().await.1], garage[..]);
    let dismiss = pb::DismissAlertRequest { id: door[0].id.clone(), ..Default::default() };
    let dismissed = server.alerts().dismiss_alert(dismiss).await.unwrap().into_inner();
    assert_eq!(by_status.alert().await, (AlertChangeKind::Dismissed, dismissed));
    server.stop().await;
}

#[on_both]
async fn every_topic_is_announced(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut watch = server.watch(pb::WatchRequest::default()).await;
    let camera = server.camera("door").await;
    let expected = pb::CameraChange { kind: pb::ChangeKind::Created.into(), camera: Some(camera) };
    assert_eq!(watch.update().await, Update::Camera(expected));
    let zone = server.zone(middle("door", "z")).await;
    let expected = pb::CameraZoneChange { kind: pb::ChangeKind::Created.into(), camera_zone: Some(zone) };
    assert_eq!(watch.update().await, Update::CameraZone(expected));
    let rule = server.rule(always("everything")).await;
    let expected = pb::AlertRuleChange { kind: pb::ChangeKind::Created.into(), alert_rule: Some(rule) };
    assert_eq!(watch.update().await, Update::AlertRule(expected));
    let silence = server.silence(quiet("door")).await;
    let expected = pb::SilenceChange { kind: pb::ChangeKind::Created.into(), silence: Some(silence.clone()) };
    assert_eq!(watch.update().await, Update::Silence(expected));
    let expire = pb::ExpireSilenceRequest { id: silence.id, expected_version_id: None };
    let silence = server.silences().expire_silence(expire).await.unwrap().into_inner();
    let expected = pb::SilenceChange { kind: pb::ChangeKind::Updated.into(), silence: Some(silence) };
    assert_eq!(watch.update().await, Update::Silence(expected));
    let mut request = ingest("door", vec![detection("person", 0.9)]);
    request.event.as_mut().unwrap().llm_prompt = Some("a long prompt".into());
    let ingested = server.events().ingest_event(request).await.unwrap().into_inner();
    let event = pb::Event { llm_prompt: None, ..ingested.event.unwrap() };
    let expected = pb::EventChange { kind: pb::ChangeKind::Created.into(), event: Some(event) };
    assert_eq!(watch.update().await, Update::Event(expected));
    assert_eq!(watch.alert().await, (AlertChangeKind::Created, ingested.alerts[0].clone()));
    let delete = pb::DeleteCameraRequest { id: "door".into() };
    server.cameras().delete_camera(delete).await.unwrap();
    let Update::Camera(change) = watch.update().await else { panic!("not a camera") };
    assert_eq!(change.kind(), pb::ChangeKind::Deleted);
    server.stop().await;
}

#[on_both]
async fn heartbeats_come_as_often_as_asked_and_carry_a_cursor_to_resume_from(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    let quiet = pb::WatchRequest { heartbeat_interval: heartbeats_every(100), ..topics(&[Topic::Cameras]) };
    let mut watch = server.watch(quiet).await;
    let start = watch.cursor.clone();
    let mut alerts = server.watch(topics(&[Topic::Alerts])).await;
    let raised = raise(&server, 3).await;
    assert_eq!(new_alerts(&mut alerts, 3).await, raised);
    // The server has read the alerts by now, so a heartbeat that it sends from here on is past them.
    let now = prost_types::Timestamp::from(SystemTime::now());
    loop {
        let Some(Update::Heartbeat(heartbeat)) = watch.next().await.update else { panic!("not a heartbeat") };
        let sent = heartbeat.server_time.unwrap();
        if heartbeat.behind_changes == 0 && (sent.seconds, sent.nanos) > (now.seconds, now.nanos) {
            assert_eq!(heartbeat.behind, Some(prost_types::Duration::default()));
            break;
        }
    }
    // What the filter holds back moves the cursor all the same.
    assert_ne!(watch.cursor, start);
    let raised = raise(&server, 1).await;
    let mut resumed = server.watch(alerts_after(&watch.cursor)).await;
    assert_eq!(new_alerts(&mut resumed, 1).await, raised);
    server.stop().await;
}

#[on_both]
async fn a_watch_that_does_not_read_holds_up_nobody_and_loses_nothing(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    let mut slow = server.watch(topics(&[Topic::Events, Topic::Alerts])).await;
    let mut fast = server.watch(topics(&[Topic::Alerts])).await;
    // More than the windows of the connection and of the stream can hold.
    let mut raised = Vec::new();
    for _ in 0..24 {
        let mut request = ingest("door", vec![]);
        request.event.as_mut().unwrap().summary = Some("x".repeat(60_000));
        let ingested = server.events().ingest_event(request).await.unwrap().into_inner();
        raised.push(ingested.alerts[0].id.clone());
    }
    assert_eq!(new_alerts(&mut fast, raised.len()).await, raised);
    let mut seen = Vec::new();
    while seen.len() < raised.len() {
        if let Update::Alert(change) = slow.update().await {
            seen.push(change.alert.unwrap().id);
        }
    }
    assert_eq!(seen, raised);
    server.stop().await;
}

#[on_both]
async fn at_shutdown_a_watch_gets_a_last_heartbeat_and_unavailable(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let raised = raise(&server, 1).await;
    assert_eq!(new_alerts(&mut watch, 1).await, raised);
    let stopped = tokio::spawn(server.stop());
    assert!(matches!(watch.next().await.update, Some(Update::Heartbeat(_))));
    let end = watch.try_next().await.unwrap_err();
    assert_eq!((end.code(), reason(&end)), (Code::Unavailable, "SHUTTING_DOWN".into()));
    stopped.await.unwrap();
}

#[on_both]
async fn a_live_watch_is_told_of_what_was_pruned_before_the_server_read_it(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let raised = raise(&server, 1).await;
    assert_eq!(new_alerts(&mut watch, 1).await, raised);
    // Recorded and deleted in one transaction: no reader comes in between.
    let xid = match backend {
        Backend::Sqlite => "0",
        Backend::Postgres => "pg_current_xact_id()::text::bigint",
    };
    let db = server.database.connect().await;
    let tx = db.begin().await.unwrap();
    for sql in [
        "INSERT INTO changes (topic, key, message) VALUES ('alerts', 'lost', '')",
        &format!("UPDATE feed_state SET pruned_xid = {xid}, pruned_seq = (SELECT max(seq) FROM changes)"),
        "DELETE FROM changes",
    ] {
        tx.execute_unprepared(sql).await.unwrap();
    }
    tx.commit().await.unwrap();
    db.close().await.unwrap();
    let telling = async {
        loop {
            match watch.try_next().await {
                Ok(response) => assert!(matches!(response.update, Some(Update::Heartbeat(_)))),
                Err(expired) => return expired,
            }
        }
    };
    let expired = tokio::time::timeout(support::PATIENCE, telling).await.expect("it is told");
    assert_eq!((expired.code(), reason(&expired)), (Code::OutOfRange, "CURSOR_EXPIRED".into()));
    // A new one goes on from there, and so do the rules.
    let details = tonic_types::StatusExt::get_error_details(&expired);
    let earliest = details.error_info().unwrap().metadata["earliest_cursor"].clone();
    let mut watch = server.watch(alerts_after(&earliest)).await;
    let raised = raise(&server, 1).await;
    assert_eq!(new_alerts(&mut watch, 1).await, raised);
    server.stop().await;
}

#[on_both]
async fn a_cursor_out_of_retention_is_refused_with_the_earliest_one(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    let watch = server.watch(topics(&[Topic::Alerts])).await;
    let old = watch.cursor.clone();
    raise(&server, 3).await;
    let settings = db::Settings {
        url: server.database.url().to_string(),
        connections: 4,
        sqlite_synchronous: db::Synchronous::Full,
    };
    let db = Db::connect(&settings).await.unwrap();
    // What a running transaction of anybody still holds up is pruned later.
    let mut pruned = 0;
    eventually("all changes are pruned", async || {
        pruned += feed::retention::prune(&db, KEEP_NOTHING).await.unwrap();
        pruned >= 8
    })
    .await;
    db.close().await;
    let expired = server.monitor().watch(alerts_after(&old)).await.unwrap_err();
    assert_eq!((expired.code(), reason(&expired)), (Code::OutOfRange, "CURSOR_EXPIRED".into()));
    let details = tonic_types::StatusExt::get_error_details(&expired);
    let metadata = &details.error_info().unwrap().metadata;
    assert!(metadata["lost_changes"].parse::<i64>().unwrap() >= 3);
    let mut watch = server.watch(alerts_after(&metadata["earliest_cursor"])).await;
    let raised = raise(&server, 1).await;
    assert_eq!(new_alerts(&mut watch, 1).await, raised);
    server.stop().await;
}

#[on_both]
async fn bad_watches_are_refused(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    let other = TestServer::start(backend).await;
    let foreign = other.watch(pb::WatchRequest::default()).await.cursor;
    let own = server.watch(pb::WatchRequest::default()).await.cursor;
    let alert_filter = |alert_filter| pb::WatchRequest { alert_filter: Some(alert_filter), ..Default::default() };
    let interval = |seconds, nanos| pb::WatchRequest {
        heartbeat_interval: Some(prost_types::Duration { seconds, nanos }),
        ..Default::default()
    };
    let cases = [
        (alerts_after("garbage"), "cursor"),
        (alerts_after(&foreign), "cursor"),
        (pb::WatchRequest { topics: vec![1, 0], ..Default::default() }, "topics[1]"),
        (pb::WatchRequest { topics: vec![99], ..Default::default() }, "topics[0]"),
        (pb::WatchRequest { start: 1, ..alerts_after(&own) }, "start"),
        (pb::WatchRequest { start: 9, ..Default::default() }, "start"),
        (pb::WatchRequest { start: -1, ..Default::default() }, "start"),
        (
            alert_filter(pb::AlertWatchFilter { severities: vec![9], ..Default::default() }),
            "alert_filter.severities[0]",
        ),
        (alert_filter(pb::AlertWatchFilter { statuses: vec![0], ..Default::default() }), "alert_filter.statuses[0]"),
        (
            alert_filter(pb::AlertWatchFilter { rule_ids: vec!["x".into()], ..Default::default() }),
            "alert_filter.rule_ids[0]",
        ),
        (interval(0, 1), "heartbeat_interval"),
        (interval(-1, 0), "heartbeat_interval"),
        (interval(301, 0), "heartbeat_interval"),
    ];
    for (request, named) in cases {
        let status = server.monitor().watch(request.clone()).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, named), "{request:?}");
    }
    other.stop().await;
    server.stop().await;
}

#[on_both]
async fn no_more_watches_than_allowed_are_open(backend: Backend) {
    let database = support::database::TestDatabase::migrated(backend).await;
    let server = TestServer::start_with(database, |settings| settings.max_watches = 2).await;
    let first = server.watch(pb::WatchRequest::default()).await;
    let second = server.watch(pb::WatchRequest::default()).await;
    let third = server.monitor().watch(pb::WatchRequest::default()).await.unwrap_err();
    assert_eq!((third.code(), reason(&third)), (Code::ResourceExhausted, "TOO_MANY_WATCHES".into()));
    drop(first);
    // The place is free once the server has heard of it.
    let watching = async || server.monitor().watch(pb::WatchRequest::default()).await.is_ok();
    eventually("the place of the first watch is free", watching).await;
    drop(second);
    server.stop().await;
}

#[on_both]
async fn what_rolls_back_is_not_announced(backend: Backend) {
    let server = server_with_a_rule(backend).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let unknown = server.events().ingest_event(ingest("nowhere", vec![])).await.unwrap_err();
    assert_eq!(unknown.code(), Code::FailedPrecondition);
    let raised = raise(&server, 1).await;
    assert_eq!(new_alerts(&mut watch, 1).await, raised);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_on_one_database_are_one() {
    let one = server_with_a_rule(Backend::Postgres).await;
    let two = support::start(one.database.url(), |_| {}).await;
    let channel = connect(&format!("http://{}", two.address)).await;
    let mut monitor = pb::monitor_service_client::MonitorServiceClient::new(channel.clone());
    let mut watch = Watch::from(monitor.watch(topics(&[Topic::Alerts])).await.unwrap().into_inner());
    watch.next().await;
    let raised = raise(&one, 3).await;
    assert_eq!(new_alerts(&mut watch, 3).await, raised);
    // A cursor of the one is good for the other.
    let cursor = watch.cursor.clone();
    let raised = raise(&one, 1).await;
    let mut resumed = one.watch(alerts_after(&cursor)).await;
    assert_eq!(new_alerts(&mut resumed, 1).await, raised);
    // A rule that is made here is in force there soon.
    let rule = one.rule(pb::AlertRule { severity: pb::Severity::Critical.into(), ..always("new") }).await;
    let mut events = pb::event_service_client::EventServiceClient::new(channel);
    let known = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let ingested = events.ingest_event(ingest("door", vec![])).await.unwrap().into_inner();
            if ingested.rule_outcomes.iter().any(|outcome| outcome.rule_id == rule.id) {
                break;
            }
        }
    });
    known.await.expect("the other server learns of the rule");
    drop(watch);
    assert!(two.stop().await);
    one.stop().await;
}
