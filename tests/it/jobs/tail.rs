//! `TailJobLogs`: what is logged, line by line, as it is logged.

use std::time::Duration;

use tokio::time::timeout;
use tonic::Streaming;
use uuid::Uuid;
use watchpost::{
    entity::{
        job::{self, JobStatus},
        job_log::{self, JobLogLevel},
    },
    feed::retention::{Retention, prune},
    pb::{self, JobChangeKind as Kind, JobLogLevel as Level},
};

use super::rows::{NONE, beside, change, changes, client, finished, insert, line, now, queued, replace, running, tell};
use crate::support::{
    PATIENCE, TestServer,
    calls::{not_found, refused},
    database::{Backend, on_both},
};

async fn tail(server: &TestServer, job_id: Uuid, after_line: i64, min_level: Level) -> Streaming<pb::JobLog> {
    let request = pb::TailJobLogsRequest { job_id: job_id.to_string(), after_line, min_level: min_level.into() };
    client(server).tail_job_logs(request).await.unwrap().into_inner()
}

/// The number of the next line, if there is one.
async fn next(lines: &mut Streaming<pb::JobLog>) -> Option<i64> {
    let next = timeout(PATIENCE, lines.message()).await.expect("a line comes in time");
    next.unwrap().map(|log| log.line.unwrap())
}

async fn rest(mut lines: Streaming<pb::JobLog>) -> Vec<i64> {
    let mut numbers = Vec::new();
    while let Some(number) = next(&mut lines).await {
        numbers.push(number);
    }
    numbers
}

/// The lines from one number to another, every fourth of which is an error.
fn lines(job_id: Uuid, numbers: std::ops::RangeInclusive<i64>) -> Vec<job_log::Model> {
    let level = |number| {
        if number % 4 == 0 { JobLogLevel::Error } else { JobLogLevel::Info }
    };
    numbers.map(|number| line(job_id, Some(number), level(number), "line")).collect()
}

#[on_both]
async fn a_log_is_followed_from_its_first_line_to_its_last(backend: Backend) {
    let server = TestServer::start(backend).await;
    let (rows, db) = (server.database.connect().await, beside(&server).await);
    // More than are read at a time.
    let mut job = job::Model { log_lines: 1_201, ..running("a", 5) };
    let other = running("b", 5);
    insert(&rows, [job.clone(), other.clone()]).await;
    insert(&rows, lines(job.id, 1..=1_201)).await;
    let mut all = tail(&server, job.id, 0, Level::Unspecified).await;
    let mut some = tail(&server, job.id, 1_199, Level::Unspecified).await;
    let mut later = tail(&server, job.id, 1_204, Level::Info).await;
    let mut errors = tail(&server, job.id, 0, Level::Error).await;
    for expected in 1..=1_201 {
        assert_eq!(next(&mut all).await, Some(expected));
        if expected % 4 == 0 {
            assert_eq!(next(&mut errors).await, Some(expected));
        }
    }
    assert_eq!((next(&mut some).await, next(&mut some).await), (Some(1_200), Some(1_201)));

    job.log_lines = 1_205;
    replace(&db, Kind::Progress, &job, &lines(job.id, 1_202..=1_205)).await;
    replace(
        &db,
        Kind::Completed,
        &job::Model { status: JobStatus::Completed, completed_at: Some(now()), ..other.clone() },
        &lines(other.id, 1..=1),
    )
    .await;
    for expected in 1_202..=1_205 {
        assert_eq!((next(&mut all).await, next(&mut some).await), (Some(expected), Some(expected)));
    }
    assert_eq!((next(&mut errors).await, next(&mut later).await), (Some(1_204), Some(1_205)));
    let done = job::Model { status: JobStatus::Completed, completed_at: Some(now()), log_lines: 1_209, ..job.clone() };
    replace(&db, Kind::Completed, &done, &lines(job.id, 1_206..=1_209)).await;
    assert_eq!(rest(all).await, [1_206, 1_207, 1_208, 1_209]);
    assert_eq!(rest(some).await, [1_206, 1_207, 1_208, 1_209]);
    assert_eq!(rest(errors).await, [1_208]);
    rows.close().await.unwrap();
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn the_log_of_a_finished_job_ends_with_its_last_line(backend: Backend) {
    let server = TestServer::start(backend).await;
    let rows = server.database.connect().await;
    let job = job::Model { log_lines: 6, ..finished("a", JobStatus::Cancelled, 5) };
    insert(&rows, [job.clone()]).await;
    insert(&rows, lines(job.id, 1..=6)).await;
    rows.close().await.unwrap();
    assert_eq!(rest(tail(&server, job.id, 0, Level::Debug).await).await, [1, 2, 3, 4, 5, 6]);
    assert_eq!(rest(tail(&server, job.id, 4, Level::Unspecified).await).await, [5, 6]);
    assert_eq!(rest(tail(&server, job.id, i64::MAX, Level::Unspecified).await).await, [0; 0]);
    assert_eq!(rest(tail(&server, job.id, 0, Level::Error).await).await, [4]);
    server.stop().await;
}

#[on_both]
async fn a_log_ends_when_its_job_is_deleted(backend: Backend) {
    let server = TestServer::start(backend).await;
    let (rows, db) = (server.database.connect().await, beside(&server).await);
    let job = queued("a");
    insert(&rows, [job.clone()]).await;
    let lines = tail(&server, job.id, 0, Level::Debug).await;
    tell(&db, [changes([change(Kind::Deleted, &job)])]).await;
    assert_eq!(rest(lines).await, [0; 0]);
    rows.close().await.unwrap();
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn a_slow_client_loses_no_line_though_the_feed_forgets(backend: Backend) {
    let server = TestServer::start(backend).await;
    let (rows, db) = (server.database.connect().await, beside(&server).await);
    let mut job = running("a", 5);
    insert(&rows, [job.clone()]).await;
    let mut slow = tail(&server, job.id, 0, Level::Debug).await;
    let mut last = tail(&server, job.id, 2_999, Level::Debug).await;
    let long = |numbers| -> Vec<_> {
        lines(job.id, numbers).into_iter().map(|line| job_log::Model { message: "x".repeat(9_000), ..line }).collect()
    };
    // More than the connection and what processes share of the feed hold.
    for n in 0..30 {
        let lines = long(n * 100 + 1..=(n + 1) * 100);
        let now = job::Model { log_lines: (n + 1) * 100, ..job.clone() };
        replace(&db, Kind::Progress, &now, &lines).await;
    }
    assert_eq!(next(&mut slow).await, Some(1));
    // The server has read all of them before they are forgotten.
    assert_eq!(next(&mut last).await, Some(3_000));
    let nothing = Retention { max_age: Duration::ZERO, max_changes: u64::MAX };
    while prune(&db, nothing).await.unwrap() > 0 {}
    job.log_lines = 3_000;
    let done = job::Model { status: JobStatus::Completed, completed_at: Some(now()), ..job.clone() };
    replace(&db, Kind::Completed, &done, &[]).await;
    let left = rest(slow).await;
    assert!(left.iter().copied().eq(2..=3_000), "{} lines", left.len());
    rows.close().await.unwrap();
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn bad_requests_are_refused(backend: Backend) {
    let server = TestServer::start(backend).await;
    let request = pb::TailJobLogsRequest { job_id: NONE.into(), after_line: 0, min_level: 0 };
    let call = |request| {
        let mut jobs = client(&server);
        async move { jobs.tail_job_logs(request).await.map(|_| tonic::Response::new(())) }
    };
    not_found(call(request.clone()).await, "job", NONE);
    refused(call(pb::TailJobLogsRequest { job_id: "x".into(), ..request.clone() }).await, "job_id");
    refused(call(pb::TailJobLogsRequest { after_line: -1, ..request.clone() }).await, "after_line");
    refused(call(pb::TailJobLogsRequest { min_level: 5, ..request }).await, "min_level");
    server.stop().await;
}
