//! Where streams of jobs end, and what is refused.

use std::time::Duration;

use sea_orm::ConnectionTrait;
use tokio::time::timeout;
use tonic::Code;
use watchpost::{
    entity::{job, job_log::JobLogLevel},
    feed::retention::{Retention, prune},
    pb::{self, JobChangeKind as Kind, watch_jobs_response::Update},
};

use super::{Watch, any, completed, filtered, many, one};
use crate::{
    jobs::rows::{beside, change, changes, client, insert, line, queued, replace, running, tell},
    jobs::stream::{Worker, hello},
    support::{
        PATIENCE, TestServer,
        calls::{at, failed, refused, strings},
        database::{Backend, TestDatabase, on_both},
        eventually, eventually_some, reason,
    },
};

#[on_both]
async fn streams_end_at_shutdown_and_go_on_elsewhere(backend: Backend) {
    let server = TestServer::start(backend).await;
    let (rows, db) = (server.database.connect().await, beside(&server).await);
    let mut job = running("a", 5);
    insert(&rows, [job.clone()]).await;
    rows.close().await.unwrap();
    let mut many_jobs = Watch::of(&server, many()).await;
    let mut one_job = Watch::of_one(&server, one(job.id)).await;
    let tail = pb::TailJobLogsRequest { job_id: job.id.to_string(), ..Default::default() };
    let mut lines = client(&server).tail_job_logs(tail.clone()).await.unwrap().into_inner();
    many_jobs.heartbeat().await;
    one_job.change().await;
    job.log_lines = 1;
    replace(&db, Kind::Progress, &job, &[line(job.id, Some(1), JobLogLevel::Info, "one")]).await;
    assert_eq!(timeout(PATIENCE, lines.message()).await.unwrap().unwrap().unwrap().line, Some(1));
    many_jobs.change().await;
    one_job.change().await;
    let stopping = tokio::spawn(server.stop());
    let mut cursors = Vec::new();
    for watch in [&mut many_jobs, &mut one_job] {
        cursors.push(watch.heartbeat().await);
        let ended = watch.next().await.unwrap_err();
        assert_eq!((ended.code(), reason(&ended)), (Code::Unavailable, "SHUTTING_DOWN".into()));
    }
    let ended = timeout(PATIENCE, lines.message()).await.unwrap().unwrap_err();
    assert_eq!((ended.code(), reason(&ended)), (Code::Unavailable, "SHUTTING_DOWN".into()));
    let server = TestServer::start_with(stopping.await.unwrap(), |_| {}).await;
    replace(
        &db,
        Kind::Completed,
        &job::Model { log_lines: 2, ..completed(&job) },
        &[line(job.id, Some(2), JobLogLevel::Info, "two")],
    )
    .await;
    let mut watch = Watch::of(&server, pb::WatchJobsRequest { cursor: cursors[0].clone(), ..many() }).await;
    watch.heartbeat().await;
    assert_eq!(watch.change().await.0, Kind::Completed);
    let mut watch = Watch::of_one(&server, pb::WatchJobRequest { cursor: cursors[1].clone(), ..one(job.id) }).await;
    watch.heartbeat().await;
    assert_eq!(watch.change().await.0, Kind::Completed);
    watch.ended().await;
    let mut lines =
        client(&server).tail_job_logs(pb::TailJobLogsRequest { after_line: 1, ..tail }).await.unwrap().into_inner();
    assert_eq!(timeout(PATIENCE, lines.message()).await.unwrap().unwrap().unwrap().line, Some(2));
    assert_eq!(timeout(PATIENCE, lines.message()).await.unwrap().unwrap(), None);
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn bad_requests_are_refused_by_path(backend: Backend) {
    let server = TestServer::start(backend).await;
    let rows = server.database.connect().await;
    let job = queued("a");
    insert(&rows, [job.clone()]).await;
    rows.close().await.unwrap();
    let span = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let range = Some(pb::TimeRange { start: at(1), end: None });
    let in_logs = |filter| pb::WatchJobsRequest { logs: true, ..filtered(filter) };
    for (request, path) in [
        (filtered(pb::JobFilter { created_at: range, ..any() }), "filter.created_at"),
        (filtered(pb::JobFilter { completed_at: range, ..any() }), "filter.completed_at"),
        (filtered(pb::JobFilter { scheduled_at: range, ..any() }), "filter.scheduled_at"),
        (filtered(pb::JobFilter { has_error: Some(false), ..any() }), "filter.has_error"),
        (filtered(pb::JobFilter { min_duration: span(1, 0), ..any() }), "filter.min_duration"),
        (filtered(pb::JobFilter { max_duration: span(1, 0), ..any() }), "filter.max_duration"),
        (filtered(pb::JobFilter { cancel_requested: Some(true), ..any() }), "filter.cancel_requested"),
        (filtered(pb::JobFilter { ids: strings(&["x"]), ..any() }), "filter.ids[0]"),
        (filtered(pb::JobFilter { statuses: vec![9], ..any() }), "filter.statuses[0]"),
        (in_logs(pb::JobFilter { statuses: vec![1], ..any() }), "filter.statuses"),
        (in_logs(pb::JobFilter { job_types: strings(&["a"]), ..any() }), "filter.job_types"),
        (in_logs(pb::JobFilter { dead: Some(true), ..any() }), "filter.dead"),
        (in_logs(pb::JobFilter { worker_id: "w".into(), ..any() }), "filter.worker_id"),
        (pb::WatchJobsRequest { heartbeat_interval: span(0, 99_999_999), ..many() }, "heartbeat_interval"),
        (pb::WatchJobsRequest { cursor: "x".into(), ..many() }, "cursor"),
        (pb::WatchJobsRequest { cursor: "x".into(), snapshot: true, ..many() }, "snapshot"),
    ] {
        refused(client(&server).watch_jobs(request).await.map(|_| tonic::Response::new(())), path);
    }
    for (request, path) in [
        (pb::WatchJobRequest { id: "x".into(), ..Default::default() }, "id"),
        (pb::WatchJobRequest { cursor: "x".into(), ..one(job.id) }, "cursor"),
        (pb::WatchJobRequest { heartbeat_interval: span(301, 0), ..one(job.id) }, "heartbeat_interval"),
    ] {
        refused(client(&server).watch_job(request).await.map(|_| tonic::Response::new(())), path);
    }
    server.stop().await;
}

#[on_both]
async fn a_snapshot_of_too_many_jobs_is_refused(backend: Backend) {
    let server = TestServer::start(backend).await;
    let rows = server.database.connect().await;
    let series = "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n <= 100000)";
    let id = match backend {
        Backend::Sqlite => "randomblob(16)",
        Backend::Postgres => "watchpost_uuid7()",
    };
    let many = format!("{series} INSERT INTO jobs (id, job_type) SELECT {id}, 'a' FROM s");
    rows.execute_unprepared(&many).await.unwrap();
    let request =
        pb::WatchJobsRequest { snapshot: true, ..filtered(pb::JobFilter { job_types: strings(&["a"]), ..any() }) };
    refused(client(&server).watch_jobs(request).await.map(|_| tonic::Response::new(())), "snapshot");
    rows.execute_unprepared("UPDATE jobs SET status = 'cancelled' WHERE id = (SELECT id FROM jobs LIMIT 1)")
        .await
        .unwrap();
    let request =
        pb::WatchJobsRequest { snapshot: true, ..filtered(pb::JobFilter { job_types: strings(&["a"]), ..any() }) };
    let mut told = client(&server).watch_jobs(request).await.unwrap().into_inner();
    let mut jobs = 0;
    let count = loop {
        match told.message().await.unwrap().unwrap().update.unwrap() {
            Update::Job(_) => jobs += 1,
            Update::SnapshotEnd(count) => break count,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((jobs, count), (100_000, 100_000));
    rows.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn a_cursor_that_the_feed_has_forgotten_is_refused(backend: Backend) {
    let server = TestServer::start(backend).await;
    let (rows, db) = (server.database.connect().await, beside(&server).await);
    let job = running("a", 5);
    insert(&rows, [job.clone()]).await;
    rows.close().await.unwrap();
    let mut watch = Watch::of(&server, many()).await;
    let cursor = watch.heartbeat().await;
    tell(&db, [changes([change(Kind::Progress, &job)])]).await;
    watch.change().await;
    let nothing = Retention { max_age: Duration::ZERO, max_changes: u64::MAX };
    eventually("the change is pruned", async || prune(&db, nothing).await.unwrap() > 0).await;
    let many_again = pb::WatchJobsRequest { cursor: cursor.clone(), ..many() };
    let one_again = pb::WatchJobRequest { cursor, ..one(job.id) };
    failed(
        client(&server).watch_jobs(many_again).await.map(|_| tonic::Response::new(())),
        Code::OutOfRange,
        "CURSOR_EXPIRED",
    );
    failed(
        client(&server).watch_job(one_again).await.map(|_| tonic::Response::new(())),
        Code::OutOfRange,
        "CURSOR_EXPIRED",
    );
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn streams_of_jobs_take_places_of_watches(backend: Backend) {
    let server =
        TestServer::start_with(TestDatabase::migrated(backend).await, |settings| settings.max_watches = 4).await;
    let rows = server.database.connect().await;
    let job = queued("a");
    insert(&rows, [job.clone()]).await;
    rows.close().await.unwrap();
    let mut many_jobs = Watch::of(&server, many()).await;
    let mut one_job = Watch::of_one(&server, one(job.id)).await;
    let tail = pb::TailJobLogsRequest { job_id: job.id.to_string(), ..Default::default() };
    let lines = client(&server).tail_job_logs(tail.clone()).await.unwrap();
    many_jobs.heartbeat().await;
    one_job.change().await;
    let worker = Worker::start(&server, hello("w", 1)).await;
    let full = "TOO_MANY_WATCHES";
    let requests = || tokio_stream::pending::<pb::WorkJobsRequest>();
    failed(
        server.job_workers().work_jobs(requests()).await.map(|_| tonic::Response::new(())),
        Code::ResourceExhausted,
        full,
    );
    failed(client(&server).watch_jobs(many()).await.map(|_| tonic::Response::new(())), Code::ResourceExhausted, full);
    failed(
        client(&server).watch_job(one(job.id)).await.map(|_| tonic::Response::new(())),
        Code::ResourceExhausted,
        full,
    );
    failed(
        client(&server).tail_job_logs(tail.clone()).await.map(|_| tonic::Response::new(())),
        Code::ResourceExhausted,
        full,
    );
    failed(
        server.monitor().watch(pb::WatchRequest::default()).await.map(|_| tonic::Response::new(())),
        Code::ResourceExhausted,
        full,
    );
    drop(lines);
    let tailing = async || client(&server).tail_job_logs(tail.clone()).await.ok();
    let _lines = eventually_some("the place of the tail is free again", tailing).await;
    drop(worker);
    let watching = async || server.monitor().watch(pb::WatchRequest::default()).await.is_ok();
    eventually("the place of the worker is free again", watching).await;
    server.stop().await;
}
