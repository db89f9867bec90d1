//! What survives: the server killed with SIGKILL, and PostgreSQL going away.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{sleep, timeout};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use watchpost::pb::{
    self, Topic, alert_rule_service_client::AlertRuleServiceClient, camera_service_client::CameraServiceClient,
    event_service_client::EventServiceClient, monitor_service_client::MonitorServiceClient, watch_response::Update,
};

use crate::support::{
    self, PATIENCE, TestServer, Watch, always,
    calls::create_camera,
    connect,
    database::{Backend, Cluster, TestDatabase, on_both},
    eventually_some, ingest,
    process::{Process, overall},
    reason, topics,
};

/// How often the server is killed.
const KILLS: usize = 4;

/// Adds a camera, and a rule that always fires.
async fn prepare(channel: &Channel) {
    create_camera(channel, "door").await;
    let request = pb::CreateAlertRuleRequest { alert_rule: Some(always("everything")) };
    AlertRuleServiceClient::new(channel.clone()).create_alert_rule(request).await.unwrap();
}

/// Ingests until told to stop, each event again and again with one `request_id` until it is answered.
/// Returns the alerts of the answers.
async fn ingest_for_ever(channel: Channel, stop: Arc<Mutex<bool>>) -> Vec<String> {
    let mut alerts = Vec::new();
    while !*stop.lock().unwrap() {
        let request = pb::IngestEventRequest { request_id: uuid::Uuid::now_v7().to_string(), ..ingest("door", vec![]) };
        loop {
            match EventServiceClient::new(channel.clone()).ingest_event(request.clone()).await {
                Ok(response) => {
                    alerts.extend(response.into_inner().alerts.into_iter().map(|alert| alert.id));
                    break;
                }
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    }
    alerts
}

/// Watches alerts, resuming with the cursor whenever the stream breaks, until told to stop and all is quiet.
async fn watch_for_ever(channel: Channel, cursor: String, stop: Arc<Mutex<bool>>) -> Vec<String> {
    let (mut cursor, mut seen) = (cursor, Vec::new());
    loop {
        let request = pb::WatchRequest {
            cursor: cursor.clone(),
            heartbeat_interval: Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 }),
            ..topics(&[Topic::Alerts])
        };
        let responses = MonitorServiceClient::new(channel.clone()).watch(request).await;
        let Ok(responses) = responses else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let mut watch = Watch::from(responses.into_inner());
        while let Ok(response) = watch.try_next().await {
            cursor = response.cursor;
            match response.update {
                Some(Update::Alert(change)) => seen.push(change.alert.unwrap().id),
                Some(Update::Heartbeat(beat)) if beat.behind_changes == 0 && *stop.lock().unwrap() => {
                    return seen;
                }
                _ => {}
            }
        }
    }
}

#[on_both]
async fn a_watch_misses_and_repeats_nothing_when_the_server_is_killed(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let mut process = Process::start(database.url(), "127.0.0.1:0").await;
    let listen = process.address.trim_start_matches("http://").to_string();
    let channel = process.serving().await;
    prepare(&channel).await;
    let lazy = Channel::from_shared(process.address.clone()).unwrap().connect_lazy();
    let responses = MonitorServiceClient::new(channel).watch(topics(&[Topic::Alerts])).await.unwrap();
    let cursor = Watch::from(responses.into_inner()).next().await.cursor;

    let (writing, watching) = (Arc::new(Mutex::new(false)), Arc::new(Mutex::new(false)));
    let writers: Vec<_> = (0..4).map(|_| tokio::spawn(ingest_for_ever(lazy.clone(), writing.clone()))).collect();
    let watchers: Vec<_> =
        (0..3).map(|_| tokio::spawn(watch_for_ever(lazy.clone(), cursor.clone(), watching.clone()))).collect();
    for _ in 0..KILLS {
        sleep(Duration::from_millis(400)).await;
        process.kill().await;
        process = Process::start(database.url(), &listen).await;
        process.serving().await;
    }
    *writing.lock().unwrap() = true;
    let mut raised = HashSet::new();
    for writer in writers {
        raised.extend(timeout(PATIENCE, writer).await.unwrap().unwrap());
    }
    *watching.lock().unwrap() = true;
    assert!(raised.len() > KILLS, "{} alerts", raised.len());
    for watcher in watchers {
        let seen = timeout(PATIENCE, watcher).await.unwrap().unwrap();
        let unique: HashSet<_> = seen.iter().cloned().collect();
        assert_eq!(unique.len(), seen.len(), "an alert came twice");
        assert_eq!(unique, raised, "what was answered is what came");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_goes_away_and_comes_back_costs_nothing_but_time() {
    let cluster = Cluster::start().await;
    let server = support::start(&cluster.url("postgres"), |_| {}).await;
    let channel = connect(&format!("http://{}", server.address)).await;
    prepare(&channel).await;
    let mut health =
        HealthClient::new(channel.clone()).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let request = pb::WatchRequest {
        heartbeat_interval: Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 }),
        ..topics(&[Topic::Alerts])
    };
    let responses = MonitorServiceClient::new(channel.clone()).watch(request).await.unwrap();
    let mut watch = Watch::from(responses.into_inner());
    let mut events = EventServiceClient::new(channel.clone());
    let before = events.ingest_event(ingest("door", vec![])).await.unwrap().into_inner();
    assert_eq!(watch.alert().await.1, before.alerts[0]);

    cluster.stop().await;
    let away = events.ingest_event(ingest("door", vec![])).await.unwrap_err();
    assert_eq!((away.code(), reason(&away)), (Code::Unavailable, "DATABASE_AWAY".into()));
    let read = EventServiceClient::new(channel.clone())
        .get_event(pb::GetEventRequest { id: before.event.unwrap().id })
        .await
        .unwrap_err();
    assert_eq!((read.code(), reason(&read)), (Code::Unavailable, "DATABASE_AWAY".into()));
    assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    // The stream stays, and says that it is alive.
    assert!(matches!(watch.next().await.update, Some(Update::Heartbeat(_))));

    cluster.restart().await;
    assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let after =
        eventually_some("the server works again", async || match events.ingest_event(ingest("door", vec![])).await {
            Ok(response) => Some(response.into_inner()),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                None
            }
        })
        .await;
    assert_eq!(watch.alert().await.1, after.alerts[0]);
    drop((watch, health));
    assert!(server.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_waits_for_a_postgres_that_is_not_there_yet() {
    let cluster = Cluster::start().await;
    cluster.stop().await;
    let process = Process::start(&cluster.url("postgres"), "127.0.0.1:0").await;
    let channel = connect(&process.address).await;
    assert_eq!(overall(&channel).await, Some(ServingStatus::NotServing));
    let starting = CameraServiceClient::new(channel.clone()).list_cameras(pb::ListCamerasRequest::default()).await;
    let starting = starting.unwrap_err();
    assert_eq!((starting.code(), reason(&starting)), (Code::Unavailable, "STARTING".into()));
    cluster.restart().await;
    let channel = process.serving().await;
    prepare(&channel).await;
}

/// On PostgreSQL numbers are given before the commit, so that a reader of plain numbers loses what commits late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_commits_late_is_not_lost() {
    use sea_orm::{ConnectionTrait, TransactionTrait};

    let server = TestServer::start(support::database::Backend::Postgres).await;
    server.camera("door").await;
    let rule = server.rule(always("everything")).await;
    let mut watch = server.watch(topics(&[Topic::AlertRules, Topic::Alerts])).await;
    let db = server.database.connect().await;
    let late = db.begin().await.unwrap();
    let change =
        "INSERT INTO changes (topic, key, message) SELECT topic, key, message FROM changes WHERE topic = 'alert_rules'";
    late.execute_unprepared(change).await.unwrap();
    // Numbered after it, committed before it.
    let raised = server.ingest("door", vec![]).await.alerts;
    let early = timeout(Duration::from_millis(300), watch.update()).await;
    assert!(early.is_err(), "nothing comes before what may still commit: {early:?}");
    late.commit().await.unwrap();
    let Update::AlertRule(change) = watch.update().await else { panic!("not a rule") };
    assert_eq!(change.alert_rule.unwrap().id, rule.id);
    assert_eq!(watch.alert().await.1, raised[0]);
    // One that rolls back wakes nobody, and holds nothing up for long.
    let late = db.begin().await.unwrap();
    late.execute_unprepared("INSERT INTO changes (topic, key, message) VALUES ('alerts', 'x', '')").await.unwrap();
    let raised = server.ingest("door", vec![]).await.alerts;
    late.rollback().await.unwrap();
    assert_eq!(watch.alert().await.1, raised[0]);
    server.stop().await;
}

/// What was committed before a watch from now is not shown, though it can only be read later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_now_does_not_see_what_is_committed_and_not_settled() {
    use sea_orm::{ConnectionTrait, TransactionTrait};

    let server = TestServer::start(support::database::Backend::Postgres).await;
    server.camera("door").await;
    server.rule(always("everything")).await;
    let db = server.database.connect().await;
    let running = db.begin().await.unwrap();
    let change = "INSERT INTO changes (topic, key, message) VALUES ('none', '', '')";
    running.execute_unprepared(change).await.unwrap();
    server.ingest("door", vec![]).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let raised = server.ingest("door", vec![]).await.alerts;
    running.commit().await.unwrap();
    assert_eq!(watch.alert().await.1, raised[0]);
    server.stop().await;
}
