//! Calls that search the database: nothing waits for them that does not search, and they end when they are given up.
#![expect(clippy::float_cmp, reason = "what is told is what was counted")]

use std::{net::SocketAddr, pin::Pin, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, TransactionTrait};
use tokio::{task::JoinHandle, time::timeout};
use tonic::{Code, Request, Status};
use watchpost::pb;

use crate::{
    metrics::{measured, scrape_until},
    support::{
        PATIENCE, TestServer, always,
        calls::{Reply, between, execute, failed, query},
        database::{Backend, TestDatabase, on_both},
        ingest, reason,
    },
};

/// More calls than there are connections.
const MANY: usize = 20;

/// View in place of the table: as many rows as are read, none of which matches the filter of [`search`]. The view reads
/// a table, of one row: SQLite never notices that the schema has changed under a prepared statement that reads none.
const ENDLESS: &str = "\
    CREATE VIEW alert_suppressions AS \
    WITH RECURSIVE numbers (n) AS (SELECT count(*) FROM cameras UNION ALL SELECT n + 1 FROM numbers) \
    SELECT n AS id, 1 AS event_id, NULL AS rule_id, 'door' AS camera_id, 'k' AS dedup_key, \
    CASE WHEN n > 0 THEN 'cooldown' ELSE 'silenced' END AS reason, NULL AS silence_id, NULL AS alert_id, \
    '2026-01-01T00:00:00+00:00' AS created_at FROM numbers";

/// Keeps every search of suppressed alerts from ending: on PostgreSQL by a lock on the table, on SQLite by a view
/// without an end.
struct Blockade {
    lock: Option<(DatabaseConnection, DatabaseTransaction)>,
}

impl Blockade {
    async fn begin(server: &TestServer, backend: Backend) -> Self {
        if backend == Backend::Postgres {
            let lock = lock(server, "alert_suppressions").await;
            return Self { lock: Some(lock) };
        }
        execute(server, "ALTER TABLE alert_suppressions RENAME TO kept_suppressions").await;
        execute(server, ENDLESS).await;
        Self { lock: None }
    }

    async fn end(self, server: &TestServer) {
        if let Some((db, lock)) = self.lock {
            lock.rollback().await.unwrap();
            db.close().await.unwrap();
            return;
        }
        execute(server, "DROP VIEW alert_suppressions").await;
        execute(server, "ALTER TABLE kept_suppressions RENAME TO alert_suppressions").await;
    }
}

/// Locks a table of PostgreSQL against all that read it.
async fn lock(server: &TestServer, table: &str) -> (DatabaseConnection, DatabaseTransaction) {
    let db = server.database.connect().await;
    let tx = db.begin().await.unwrap();
    let lock = format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
    tx.execute_unprepared(&lock).await.unwrap();
    (db, tx)
}

/// A search that no index serves.
fn search() -> pb::ListAlertSuppressionsRequest {
    pb::ListAlertSuppressionsRequest {
        filter: Some(pb::AlertSuppressionFilter {
            reasons: vec![pb::SuppressionReason::Silenced.into()],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A server that tells its metrics, with a camera and an event.
async fn start(backend: Backend) -> (TestServer, SocketAddr, i64) {
    let database = TestDatabase::migrated(backend).await;
    let server = TestServer::start_with(database, |settings| {
        measured(settings);
        settings.max_connection_streams = 1_000;
    })
    .await;
    server.camera("door").await;
    let event = server.ingest("door", vec![]).await.event.unwrap();
    let address = server.metrics_address().unwrap();
    (server, address, event.id)
}

/// Begins many searches, and waits until all connections for searches are in use.
async fn search_on_all(server: &TestServer, metrics: SocketAddr) -> Vec<JoinHandle<()>> {
    let search_once = || {
        let mut silences = server.silences();
        tokio::spawn(async move {
            let reply = silences.list_alert_suppressions(search()).await;
            panic!("the search ends: {reply:?}");
        })
    };
    let searches = std::iter::repeat_with(search_once).take(MANY).collect();
    scrape_until(metrics, |all| {
        let running = all.value("watchpost_scans_running", &[]);
        let connections = all.value("watchpost_scan_connections", &[]);
        let waiting = all.value("watchpost_scans_waiting", &[]);
        running == connections && running + waiting == 20.0
    })
    .await;
    searches
}

/// Reply of a call while searches hang.
async fn at_once<T>(call: impl Future<Output = Reply<T>>) -> T {
    let reply = timeout(PATIENCE, call).await;
    reply.expect("the call does not wait for searches").unwrap().into_inner()
}

/// A request with a deadline.
fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

#[on_both]
async fn nothing_else_waits_for_searches_and_those_given_up_end(backend: Backend) {
    let (server, metrics, event_id) = start(backend).await;
    let blockade = Blockade::begin(&server, backend).await;
    let searches = search_on_all(&server, metrics).await;

    let camera = pb::GetCameraRequest { id: "door".into() };
    assert_eq!(at_once(server.cameras().get_camera(camera)).await.id, "door");
    let stored = at_once(server.events().ingest_event(ingest("door", vec![]))).await;
    assert!(stored.event.is_some());
    let event = pb::GetEventRequest { id: event_id };
    assert_eq!(at_once(server.events().get_event(event)).await.id, event_id);
    // A page by an index is no search.
    let page = at_once(server.events().list_events(pb::ListEventsRequest::default())).await;
    assert_eq!(page.events.len(), 2);

    for search in &searches {
        search.abort();
    }
    // The queries would not end by themselves: the blockade still stands.
    let all = scrape_until(metrics, |all| {
        all.value("watchpost_scans_running", &[]) == 0.0 && all.value("watchpost_scans_waiting", &[]) == 0.0
    })
    .await;
    let stopped = all.value("watchpost_scan_queries_stopped_total", &[]);
    assert!(stopped >= all.value("watchpost_scan_connections", &[]), "{stopped}");
    assert_eq!(all.value("watchpost_scans_refused_total", &[]), 0.0);
    if backend == Backend::Postgres {
        nothing_waits_for_a_lock(&server).await;
    }

    blockade.end(&server).await;
    let found = at_once(server.silences().list_alert_suppressions(search())).await;
    assert_eq!(found.alert_suppressions, []);
    server.stop().await;
}

#[on_both]
async fn a_search_ends_at_its_deadline(backend: Backend) {
    let (server, metrics, _) = start(backend).await;
    let blockade = Blockade::begin(&server, backend).await;
    // Time enough for the query to begin.
    let search = within(Duration::from_secs(2), search());
    let status = server.silences().list_alert_suppressions(search).await.unwrap_err();
    // The client may be first to notice.
    let code = status.code();
    assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    scrape_until(metrics, |all| {
        all.value("watchpost_scans_running", &[]) == 0.0
            && all.value("watchpost_scan_queries_stopped_total", &[]) >= 1.0
    })
    .await;
    blockade.end(&server).await;
    server.stop().await;
}

#[on_both]
async fn a_full_line_is_refused_at_once(backend: Backend) {
    let (server, metrics, _) = start(backend).await;
    let blockade = Blockade::begin(&server, backend).await;
    let calls = (0..250).map(|_| {
        let mut silences = server.silences();
        async move { silences.list_alert_suppressions(search()).await }
    });
    let mut calls: FuturesUnordered<_> = calls.collect();
    // No search ends: the first call that ends is one that was refused.
    let first = timeout(PATIENCE, calls.next()).await.expect("a call is refused in time");
    let status = failed(first.unwrap(), Code::Unavailable, "SERVER_BUSY");
    assert!(status.message().contains("calls wait for a scan slot"), "{status:?}");
    scrape_until(metrics, |all| all.value("watchpost_scans_refused_total", &[]) >= 1.0).await;
    drop(calls);
    blockade.end(&server).await;
    server.stop().await;
}

#[on_both]
async fn all_calls_that_search_take_turns(backend: Backend) {
    let (server, metrics, event_id) = start(backend).await;
    let rule = server.rule(always("all")).await;
    let blockade = Blockade::begin(&server, backend).await;
    let searches = search_on_all(&server, metrics).await;
    for (name, reply) in search_each(&server, event_id, &rule.id, Duration::from_millis(50)) {
        let reply = timeout(PATIENCE, reply).await.expect("a deadline is kept");
        assert!(reply.is_err(), "{name} does not wait for its turn");
    }
    for search in searches {
        search.abort();
    }
    blockade.end(&server).await;
    for (name, reply) in search_each(&server, event_id, &rule.id, PATIENCE) {
        let reply = reply.await;
        assert!(reply.is_ok(), "{name}: {reply:?}");
    }
    server.stop().await;
}

type Search<'a> = Pin<Box<dyn Future<Output = Result<(), Status>> + 'a>>;

/// Each of the calls that search, with this deadline.
fn search_each<'a>(
    server: &'a TestServer,
    event_id: i64,
    rule_id: &'a str,
    deadline: Duration,
) -> Vec<(&'static str, Search<'a>)> {
    macro_rules! search {
        ($client:ident.$method:ident($request:expr)) => {{
            let request = within(deadline, $request);
            let search: Search<'a> = Box::pin(async move {
                let mut client = server.$client();
                client.$method(request).await.map(|_| ())
            });
            (stringify!($method), search)
        }};
    }
    let trial = pb::TestAlertRuleRequest {
        started_at: between(0, 4_000_000_000),
        rule: Some(pb::test_alert_rule_request::Rule::RuleId(rule_id.into())),
        ..Default::default()
    };
    let trial = within(deadline, trial);
    let trial: Search<'a> = Box::pin(async move {
        let mut responses = server.rules().test_alert_rule(trial).await?.into_inner();
        while responses.message().await?.is_some() {}
        Ok(())
    });
    let events = pb::EventFilter { text: "needle".into(), ..Default::default() };
    let detections = pb::DetectionFilter { object_type: "person".into(), ..Default::default() };
    let alerts = pb::AlertFilter { open: Some(true), ..Default::default() };
    let jobs = pb::JobFilter { has_error: Some(true), ..Default::default() };
    vec![
        ("test_alert_rule", trial),
        search!(rules.explain_event(pb::ExplainEventRequest { event_id, ..Default::default() })),
        search!(rules.export_alert_rules(pb::ExportAlertRulesRequest::default())),
        search!(rules.get_alert_rule_stats(pb::GetAlertRuleStatsRequest::default())),
        search!(alerts.get_alert_stats(pb::GetAlertStatsRequest::default())),
        search!(events.list_events(pb::ListEventsRequest { filter: Some(events), ..Default::default() })),
        search!(events.list_detections(pb::ListDetectionsRequest { filter: Some(detections), ..Default::default() })),
        search!(alerts.list_alerts(pb::ListAlertsRequest { filter: Some(alerts.clone()), ..Default::default() })),
        search!(alerts.dismiss_alerts(pb::DismissAlertsRequest {
            filter: Some(alerts),
            actor: "ann".into(),
            reason: "a test".into(),
            dry_run: true,
            ..Default::default()
        })),
        search!(jobs.list_jobs(pb::ListJobsRequest { filter: Some(jobs), ..Default::default() })),
        search!(jobs.search_jobs(pb::SearchJobsRequest::default())),
        search!(jobs.get_job_stats(pb::GetJobStatsRequest::default())),
        search!(zones.count_zone_hits(pb::CountZoneHitsRequest {
            camera_id: "door".into(),
            range: between(0, 86_400),
            bucket_width: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }),
            ..Default::default()
        })),
        search!(gpu_stats.aggregate_gpu_stats(pb::AggregateGpuStatsRequest {
            range: between(0, 3_600),
            bucket_width: Some(prost_types::Duration { seconds: 3_600, nanos: 0 }),
            metrics: vec![pb::GpuMetric::Temperature.into()],
            ..Default::default()
        })),
    ]
}

async fn nothing_waits_for_a_lock(server: &TestServer) {
    let sql = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() \
        AND state = 'active' AND wait_event_type = 'Lock'";
    let waiting = query(server, sql).await;
    assert_eq!(waiting.len(), 0, "queries that nobody wants any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_database_is_not_said_to_be_away() {
    let database = TestDatabase::migrated(Backend::Postgres).await;
    let server = TestServer::start_with(database, |settings| {
        settings.database_connections = 4;
    })
    .await;
    server.camera("door").await;
    let (db, lock) = lock(&server, "cameras").await;
    let calls = (0..8).map(|_| {
        let mut cameras = server.cameras();
        let camera = pb::GetCameraRequest { id: "door".into() };
        async move { cameras.get_camera(camera).await }
    });
    let mut calls: FuturesUnordered<_> = calls.collect();
    // At most two wait for the lock; the others wait for a connection.
    for _ in 0..6 {
        let reply = timeout(PATIENCE, calls.next()).await.expect("no call waits for ever");
        failed(reply.unwrap(), Code::Unavailable, "SERVER_BUSY");
    }
    lock.rollback().await.unwrap();
    db.close().await.unwrap();
    while let Some(reply) = calls.next().await {
        if let Err(status) = reply {
            assert_eq!(reason(&status), "SERVER_BUSY");
        }
    }
    server.stop().await;
}
