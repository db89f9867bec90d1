//! `watchpost jobs watch`: the real binary, in a terminal and without one, on a real server.

use chrono::TimeDelta;
use tokio::time::timeout;
use watchpost::{
    db::Db,
    entity::{
        job::{self, JobStatus},
        job_log::JobLogLevel,
    },
    pb::JobChangeKind as Kind,
};

use super::rows::{NONE, ago, beside, finished, insert, line, now, queued, replace, running};
use crate::support::{
    PATIENCE, TestServer,
    database::{Backend, TestDatabase, on_both},
    process::{Process, command},
    terminal::Terminal,
};

const SIZE: (u16, u16) = (24, 120);

fn completed(job: &job::Model) -> job::Model {
    job::Model {
        status: JobStatus::Completed,
        completed_at: Some(now()),
        version_id: job.version_id + 1,
        ..job.clone()
    }
}

/// A server with a job that is made once it serves, and its database beside it.
async fn serving(backend: Backend, make: impl FnOnce() -> job::Model) -> (TestServer, Db, job::Model) {
    let server = TestServer::start(backend).await;
    let rows = server.database.connect().await;
    let job = make();
    insert(&rows, [job.clone()]).await;
    rows.close().await.unwrap();
    let db = beside(&server).await;
    (server, db, job)
}

/// What the command says of a job, without a terminal, and how it ends.
async fn watched(server: &TestServer, id: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let address = server.address().to_string();
    let args = ["jobs", "watch", id, "--server", &address];
    let output = command(&[&args, more].concat()).output();
    let output = timeout(PATIENCE, output).await.expect("it ends").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[on_both]
async fn a_bar_is_drawn_until_the_job_is_done(backend: Backend) {
    let half = || job::Model {
        progress_percent: 45,
        current_step: Some("Encoding\x1b[2J".into()),
        items_processed: Some(450),
        items_total: Some(1_000),
        attempt_number: 2,
        progress_at: Some(ago(30)),
        ..running("export", 75)
    };
    let (server, db, mut job) = serving(backend, half).await;
    let address = server.address().to_string();
    let watch = Terminal::start(&format!("jobs watch {} --server {address}", job.id), SIZE);
    watch
        .shows("the bar", |text| {
            text.contains("export  [|||||||||           ]  45%  Encoding\\u{1b}[2J  450/1000  attempt 2  1:")
                && text.contains(" left")
        })
        .await;
    assert_eq!(watch.text().lines().filter(|line| !line.is_empty()).count(), 1);
    job.progress_percent = 90;
    job.cancel_requested_at = Some(now());
    replace(&db, Kind::Progress, &job, &[]).await;
    watch.shows("more", |text| text.contains("[||||||||||||||||||  ]  90%  to be cancelled")).await;
    job.cancel_requested_at = None;
    replace(&db, Kind::Completed, &completed(&job), &[]).await;
    let left = watch.ended().await;
    assert!(left.contains("export  completed  after 1:") && left.contains("ended with 0"), "{left}");
    assert!(!left.contains("90%"), "{left}");
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn lines_of_the_log_scroll_above_the_bar(backend: Backend) {
    let (server, db, mut job) = serving(backend, || job::Model { log_lines: 2, ..running("export", 5) }).await;
    let rows = server.database.connect().await;
    insert(&rows, [1, 2].map(|number| line(job.id, Some(number), JobLogLevel::Info, &format!("line {number}")))).await;
    rows.close().await.unwrap();
    let address = server.address().to_string();
    let watch = Terminal::start(&format!("jobs watch --logs --server {address} {}", job.id), SIZE);
    watch
        .shows("the log", |text| {
            text.contains("info line 1\n") && text.contains("info line 2\n") && text.contains("  0%")
        })
        .await;
    job.log_lines = 3;
    replace(&db, Kind::Progress, &job, &[line(job.id, Some(3), JobLogLevel::Error, "oh\nno")]).await;
    watch.shows("the new line", |text| text.contains("error oh\\nno\n")).await;
    watch
        .shows("the bar below", |text| text.trim_end().lines().last().is_some_and(|last| last.starts_with("export  [")))
        .await;
    watch.signal("INT").await;
    let left = watch.ended().await;
    assert!(left.contains("ended with 2"), "{left}");
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn how_it_ends_tells_what_became_of_the_job(backend: Backend) {
    let (server, db, _) = serving(backend, || queued("first")).await;
    let rows = server.database.connect().await;
    let failed = job::Model { attempt_number: 3, ..finished("a", JobStatus::Failed, 5) };
    let cancelled = job::Model {
        started_at: None,
        cancel_reason: Some("too late".into()),
        ..finished("a", JobStatus::Cancelled, 5)
    };
    for (job, code, told) in [
        (finished("a", JobStatus::Completed, 5), 0, "completed  after 0:01"),
        (failed, 1, "failed  after 0:01  no space left (ENOSPC)"),
        (cancelled, 2, "cancelled  too late"),
    ] {
        insert(&rows, [job.clone()]).await;
        let (found, output, log) = watched(&server, &job.id.to_string(), &[]).await;
        assert_eq!((found, log.as_str()), (Some(code), ""));
        let (time, line) = output.split_once(' ').unwrap();
        assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok(), "{output}");
        assert_eq!(line, format!("{told}\n"));
    }
    let (code, output, log) = watched(&server, NONE, &[]).await;
    assert_eq!((code, output.as_str()), (Some(2), ""));
    assert_eq!(log, format!("watchpost: job `{NONE}` does not exist\n"));
    rows.close().await.unwrap();
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn without_a_terminal_each_change_is_a_line(backend: Backend) {
    let later = || job::Model { scheduled_at: Some(now() + TimeDelta::hours(2)), log_lines: 1, ..queued("export") };
    let (server, db, mut job) = serving(backend, later).await;
    let rows = server.database.connect().await;
    insert(&rows, [line(job.id, Some(1), JobLogLevel::Debug, "one")]).await;
    rows.close().await.unwrap();
    let (address, id) = (server.address().to_string(), job.id.to_string());
    let mut watch = Process::spawn(&["jobs", "watch", &id, "--logs", "--server", &address]);
    watch.prints(" debug one").await;
    watch.prints(" queued  attempt 1  in 1:59:").await;
    job = job::Model { log_lines: 2, id: job.id, ..running("export", 60) };
    replace(&db, Kind::Started, &job, &[line(job.id, Some(2), JobLogLevel::Info, "two")]).await;
    watch.prints("]   0%  attempt 1  1:").await;
    watch.prints(" info two").await;
    // The server goes and comes back, with what has happened meanwhile.
    let database = server.stop().await;
    watch.says("no connection").await;
    let server = TestServer::start_with(database, |settings| settings.listen = address).await;
    job.log_lines = 3;
    replace(&db, Kind::Completed, &completed(&job), &[line(job.id, Some(3), JobLogLevel::Info, "three")]).await;
    let (status, log, rest) = watch.ended().await;
    assert_eq!((status.code(), log.as_str()), (Some(0), ""));
    assert!(rest.contains(" completed  after 1:") && rest.contains(" info three\n"), "{rest}");
    db.close().await;
    server.stop().await;
}

#[tokio::test]
async fn a_database_that_was_put_back_is_begun_with_anew() {
    let one = || job::Model { log_lines: 1, ..running("export", 5) };
    let (server, db, job) = serving(Backend::Sqlite, one).await;
    let log = |number| {
        let told = format!("line {number}");
        line(job.id, Some(number), JobLogLevel::Info, &told)
    };
    let rows = server.database.connect().await;
    insert(&rows, [log(1)]).await;
    rows.close().await.unwrap();
    let (address, id) = (server.address().to_string(), job.id.to_string());
    let mut watch = Process::spawn(&["jobs", "watch", &id, "--logs", "--server", &address]);
    watch.prints("line 1").await;
    watch.prints("0%").await;
    db.close().await;
    server.stop().await;
    watch.says("no connection").await;

    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let rows = database.connect().await;
    let done = job::Model { log_lines: 2, ..completed(&job) };
    insert(&rows, [done]).await;
    insert(&rows, [log(1), log(2)]).await;
    rows.close().await.unwrap();
    let server = TestServer::start_with(database, |settings| settings.listen = address).await;
    let (status, _, rest) = watch.ended().await;
    assert_eq!(status.code(), Some(0), "{rest}");
    // What was told is not told again.
    assert!(rest.contains("line 2") && !rest.contains("line 1"), "{rest}");
    server.stop().await;
}

#[tokio::test]
async fn bad_arguments_end_it_with_64_and_one_line() {
    for args in
        [&["jobs"][..], &["jobs", "watch"], &["jobs", "watch", "x"], &["jobs", "watch", NONE, "--server", "host"]]
    {
        let output = command(args).output().await.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    }
}
