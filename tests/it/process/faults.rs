//! Starts that fail, and ends while the database hangs.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use sea_orm::{ConnectionTrait, SqliteTransactionMode, TransactionOptions, TransactionTrait};
use tonic::Code;
use watchpost::pb::{self, camera_service_client::CameraServiceClient};

use super::run;
use crate::support::{
    database::{Backend, TestDatabase, on_both},
    process::Process,
};

/// Runs the server on this database to its end. Returns its exit code and its standard error.
async fn serve(url: &str, log: &str) -> (i32, String) {
    let args = ["--listen", "127.0.0.1:0", "--database-url", url, "--log", log];
    let (code, stdout, stderr) = run(&args, &[]).await;
    assert_eq!(stdout, "");
    (code, stderr)
}

/// Asserts that a start ends with 1, and with one line that has this text, whatever is logged.
async fn fails_with(url: &str, text: &str) {
    for log in ["info", "error", "off"] {
        let (code, stderr) = serve(url, log).await;
        assert_eq!(code, 1, "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        let last = stderr.trim_end().lines().last().unwrap_or_default();
        assert!(last.contains(text), "`{text}` with `{log}`: {stderr}");
        if log != "info" {
            assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
        }
    }
}

async fn execute(database: &TestDatabase, statements: &[&str]) {
    let db = database.connect().await;
    for statement in statements {
        db.execute_unprepared(statement).await.unwrap();
    }
    db.close().await.unwrap();
}

#[on_both]
async fn a_schema_of_a_newer_version_is_refused(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let newer = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m29990101_000001_newer', 1)";
    execute(&database, &[newer]).await;
    fails_with(database.url(), "m29990101_000001_newer").await;
}

#[on_both]
async fn a_schema_from_before_the_first_release_is_refused(backend: Backend) {
    let database = TestDatabase::empty(backend).await;
    execute(
        &database,
        &[
            "CREATE TABLE seaql_migrations (version varchar NOT NULL PRIMARY KEY, applied_at bigint NOT NULL)",
            "INSERT INTO seaql_migrations (version, applied_at) VALUES
                ('m20261124_000001_cameras', 1), ('m20261124_000002_events', 1)",
        ],
    )
    .await;
    fails_with(database.url(), "the database was made by a version before 0.1 and can't be upgraded").await;
}

#[on_both]
async fn tables_of_another_application_are_refused(backend: Backend) {
    let database = TestDatabase::empty(backend).await;
    execute(&database, &["CREATE TABLE cameras (number integer)"]).await;
    fails_with(database.url(), "cameras").await;
}

#[on_both]
async fn a_query_that_hangs_does_not_delay_the_end(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let process = Process::start_with(database.url(), "127.0.0.1:0", &[], &["--shutdown-grace", "1s"]).await;
    let channel = process.serving().await;
    let blocking = database.connect().await;
    let options =
        TransactionOptions { sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate), ..Default::default() };
    let blocker = blocking.begin_with_options(options).await.unwrap();
    if backend == Backend::Postgres {
        blocker.execute_unprepared("LOCK TABLE cameras IN EXCLUSIVE MODE").await.unwrap();
    }
    let mut cameras = CameraServiceClient::new(channel);
    let mut reader = cameras.clone();
    let camera = pb::Camera { id: "slow".into(), name: "slow".into(), ..Default::default() };
    let create = cameras.create_camera(pb::CreateCameraRequest { camera: Some(camera) });
    let mut create = pin!(create);
    // An answer to the second call, on the same connection, means that the first one was received.
    let read = reader.get_camera(pb::GetCameraRequest { id: "slow".into() });
    tokio::select! {
        biased;
        created = &mut create => panic!("{created:?}"),
        read = read => assert_eq!(read.unwrap_err().code(), Code::NotFound),
    }
    let begun = Instant::now();
    process.signal("TERM").await;
    let (ended, created) = tokio::join!(process.ended(), create);
    let (status, log, _) = ended;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}: {log}", begun.elapsed());
    assert!(status.success(), "{log}");
    created.unwrap_err();
    blocker.rollback().await.unwrap();
}

#[tokio::test]
async fn a_role_that_does_not_exist_ends_the_start() {
    let database = TestDatabase::migrated(Backend::Postgres).await;
    let url = database.url().replacen("postgres@", "nobody@", 1);
    fails_with(&url, "role \"nobody\" does not exist").await;
}

#[tokio::test]
async fn a_role_without_rights_ends_the_start() {
    let database = TestDatabase::empty(Backend::Postgres).await;
    let role = "DO $$ BEGIN CREATE ROLE watchpost_guest LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$";
    execute(&database, &[role, "REVOKE CREATE ON SCHEMA public FROM PUBLIC"]).await;
    let url = database.url().replacen("postgres@", "watchpost_guest@", 1);
    fails_with(&url, "permission denied for schema public").await;
}

#[tokio::test]
async fn a_file_that_is_no_database_ends_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("watchpost.db");
    std::fs::write(&path, "no database, though there is text enough for a header of one. ".repeat(100)).unwrap();
    fails_with(&format!("sqlite://{}", path.display()), "file is not a database").await;
}

#[tokio::test]
async fn a_database_that_is_away_is_named_with_the_reason() {
    let database = TestDatabase::empty(Backend::Postgres).await;
    let (server, _) = database.url().rsplit_once('/').unwrap();
    for (url, reason) in
        [("postgres://postgres@127.0.0.1:1/none".to_string(), "refused"), (format!("{server}/none"), "does not exist")]
    {
        let mut process = Process::start(&url, "127.0.0.1:0").await;
        let line = process.says("the database is unreachable").await;
        assert!(line.contains(reason), "{line}");
        process.signal("TERM").await;
        let (_, log, _) = process.ended().await;
        assert!(!log.contains("panicked"), "{log}");
    }
}
