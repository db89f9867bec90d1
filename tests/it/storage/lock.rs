//! One process at a time on a SQLite file, and no migration under a server.

use std::process::Output;

use tokio::time::timeout;

use crate::support::{
    PATIENCE,
    database::{Backend, TestDatabase, on_both},
    eventually,
    process::{Process, command},
};

async fn run(args: &[&str]) -> (i32, String) {
    let ended = timeout(PATIENCE, command(args).output()).await;
    let Output { status, stderr, .. } = ended.expect("the process ends").unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_a_file_ends_with_1_and_names_the_first() {
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let first = Process::start(database.url(), "127.0.0.1:0").await;
    first.serving().await;
    let pid = first.id();
    let alias = database.directory().unwrap().join("alias.db");
    std::os::unix::fs::symlink(database.directory().unwrap().join("watchpost.db"), &alias).unwrap();
    let linked = format!("sqlite://{}", alias.display());
    for url in [database.url(), &linked] {
        for command in
            [&["serve", "--listen", "127.0.0.1:0"][..], &["migrate", "up"], &["migrate", "down", "1", "--yes"]]
        {
            let args = [command, &["--database-url", url]].concat();
            let (code, log) = run(&args).await;
            assert_eq!(code, 1, "{args:?}: {log}");
            let line = log.lines().last().unwrap();
            assert!(line.contains(&format!("process {pid} (watchpost serve, since ")), "{args:?}: {log}");
        }
        let (code, log) = run(&["migrate", "status", "--database-url", url]).await;
        assert_eq!(code, 0, "{log}");
    }
    first.kill().await;
    let second = Process::start(database.url(), "127.0.0.1:0").await;
    second.serving().await;
    second.kill().await;
}

#[on_both]
async fn a_schema_is_not_taken_away_under_a_server(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let server = Process::start(database.url(), "127.0.0.1:0").await;
    server.serving().await;
    let down = ["migrate", "down", "1", "--yes", "--database-url", database.url()];
    let (code, log) = run(&down).await;
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("in use by"), "{log}");
    server.kill().await;
    // PostgreSQL may take a moment to see that its client is gone.
    eventually("the schema is taken away", async || run(&down).await.0 == 0).await;
}
