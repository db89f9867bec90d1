//! The process: its command line, its start, and its end.

mod faults;

use std::{fs::Permissions, os::unix::fs::PermissionsExt, time::Duration};

use sea_orm::{ConnectionTrait, Database, DbBackend, Statement};
use tokio::time::timeout;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use watchpost::pb::{self, monitor_service_client::MonitorServiceClient};

use crate::support::{
    PATIENCE, Watch,
    database::{Backend, Cluster, TestDatabase, on_both},
    process::{Process, command},
};

/// Runs the binary to its end: its exit code, standard output and standard error.
async fn run(args: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let output = command(args).envs(variables.iter().copied()).output();
    let output = timeout(PATIENCE, output).await.expect("the process ends").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn a_bad_setting_ends_the_process_with_64_and_one_line_that_names_it() {
    type Case = (&'static [&'static str], &'static [(&'static str, &'static str)], &'static str);
    let cases: [Case; 14] = [
        (&["--listen", "nowhere"], &[], "--listen"),
        (&[], &[("WATCHPOST_LISTEN", "nowhere")], "(from the variable WATCHPOST_LISTEN)"),
        (&["--log", "verbose"], &[], "--log"),
        (&["--listen", "nowhere"], &[("WATCHPOST_LISTEN", "127.0.0.1:1")], "(from the command line)"),
        // An empty variable counts as unset, in front of a setting that is wrong elsewhere.
        (&["--max-watches", "-1"], &[("WATCHPOST_LISTEN", ""), ("WATCHPOST_DATABASE_URL", "")], "--max-watches"),
        (&["serve", "--database-url", "mysql://x"], &[], "--database-url"),
        (&["--config", "/no/such/file.toml"], &[], "config"),
        (&["--nonsense"], &[], "--nonsense"),
        (&["migrate", "down", "1"], &[], "--yes"),
        (&["top", "--server", "nowhere"], &[], "--server"),
        (&["--time-zone-dir", "/no/such/folder"], &[], "--time-zone-dir"),
        (&[], &[("TZDIR", "/no/such/folder")], "TZDIR"),
        (&["agent"], &[], "--server"),
        (&["agent", "--server", "nowhere"], &[], "--server"),
    ];
    for (args, variables, name) in cases {
        let (code, stdout, stderr) = run(args, variables).await;
        assert_eq!((code, stdout.as_str()), (64, ""), "{args:?}");
        assert!(stderr.contains(name) && stderr.trim_end().lines().count() == 1, "{args:?}: {stderr}");
    }
}

#[tokio::test]
async fn help_explains_every_setting_with_its_default() {
    let (code, help, _) = run(&["--help"], &[]).await;
    assert_eq!(code, 0);
    assert!(help.contains("--metrics-listen <HOST:PORT>"), "{help}");
    assert!(help.contains("WATCHPOST_METRICS_LISTEN"), "{help}");
    for setting in [
        "listen",
        "data-dir",
        "database-url",
        "database-connections",
        "sqlite-synchronous",
        "log",
        "gpu-interval",
        "nvml-library",
        "host",
        "feed-retention",
        "max-watches",
        "max-connections",
        "max-connection-streams",
        "max-calls",
        "message-timeout",
        "unfinished-memory",
        "snapshot-memory",
        "max-message-size",
        "keepalive-interval",
        "keepalive-timeout",
        "time-zone-dir",
        "shutdown-grace",
    ] {
        let from = help.find(&format!("--{setting} ")).unwrap_or_else(|| panic!("--{setting}: {help}"));
        let about: String = help[from..].chars().skip(1).collect();
        let about = about.split("\n      --").next().unwrap();
        let variable = format!("WATCHPOST_{}", setting.replace('-', "_").to_uppercase());
        assert!(about.contains("[default: ") && about.contains(&variable), "{about}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_start_ends_with_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, stdout, stderr) = run(&["--listen", &address, "--data-dir", folder], &[]).await;
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains(&address), "{stderr}");
    let (code, _, stderr) = run(&["--listen", "127.0.0.1:0", "--database-url", "sqlite:///dev/null/x.db"], &[]).await;
    assert_eq!(code, 1, "{stderr}");
}

#[on_both]
async fn migrations_can_be_applied_listed_and_taken_back(backend: Backend) {
    let database = TestDatabase::empty(backend).await;
    let migrate = async |args: &[&str]| {
        let (code, stdout, stderr) = run(&[&["--database-url", database.url(), "migrate"], args].concat(), &[]).await;
        assert_eq!(code, 0, "{stderr}");
        stdout
    };
    let count = |status: &str, word: &str| status.lines().filter(|line| line.starts_with(word)).count();
    let status = migrate(&["status"]).await;
    assert_eq!((count(&status, "applied"), count(&status, "pending") > 10), (0, true), "{status}");
    migrate(&["up"]).await;
    let status = migrate(&["status"]).await;
    assert_eq!(count(&status, "pending"), 0, "{status}");
    migrate(&["down", "2", "--yes"]).await;
    assert_eq!(count(&migrate(&["status"]).await, "pending"), 2);
    migrate(&["up"]).await;
    assert_eq!(count(&migrate(&["status"]).await, "pending"), 0);
}

#[on_both]
async fn signals_stop_the_server_with_its_streams_and_standard_output_stays_clean(backend: Backend) {
    for signal in ["TERM", "INT", "HUP"] {
        let database = TestDatabase::migrated(backend).await;
        let process = Process::start(database.url(), "127.0.0.1:0").await;
        let channel = process.serving().await;
        let responses = MonitorServiceClient::new(channel.clone()).watch(pb::WatchRequest::default()).await;
        let mut watch = Watch::from(responses.unwrap().into_inner());
        watch.next().await;
        let health = HealthClient::new(channel).watch(HealthCheckRequest::default()).await;
        let mut health = health.unwrap().into_inner();
        assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        let begun = std::time::Instant::now();
        process.signal(signal).await;
        let (status, log, stdout) = process.ended().await;
        assert!(status.success(), "{log}");
        assert!(begun.elapsed() < Duration::from_secs(8), "the grace time was not needed: {log}");
        assert!(log.contains("stopped"), "{log}");
        assert_eq!(stdout, "");
        watch.next().await;
        watch.try_next().await.unwrap_err();
        assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    }
}

/// A server that asks for a password, and the URL of a database without it.
async fn with_password(password: &str) -> (Cluster, String) {
    let cluster = Cluster::start().await;
    let url = cluster.url("postgres");
    let db = Database::connect(&url).await.unwrap();
    let hba = Statement::from_string(DbBackend::Postgres, "SHOW hba_file");
    let hba = db.query_one_raw(hba).await.unwrap().unwrap();
    let hba: String = hba.try_get_by_index(0).unwrap();
    for sql in [
        format!("CREATE ROLE app LOGIN PASSWORD '{password}'"),
        "CREATE DATABASE app OWNER app".into(),
        format!(
            "COPY (VALUES ('host all app 127.0.0.1/32 scram-sha-256'), ('host all all 127.0.0.1/32 trust')) TO '{hba}'"
        ),
        "SELECT pg_reload_conf()".into(),
    ] {
        db.execute_unprepared(&sql).await.unwrap();
    }
    db.close().await.unwrap();
    let url = url.replace("postgres@", "app@").replace("/postgres", "/app");
    (cluster, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_can_be_kept_off_the_command_line() {
    let password = "correct-horse";
    let (_cluster, url) = with_password(password).await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    let file = folder.path().join("pgpass");
    std::fs::write(&file, format!("127.0.0.1:*:app:app:{password}\n")).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let variables = [("PGPASSFILE", file.into_os_string())];
    let process = Process::start_with(&url, "127.0.0.1:0", &variables, &["--data-dir", data]).await;
    process.serving().await;
    process.signal("TERM").await;
    let (_, log, _) = process.ended().await;
    assert!(!log.contains(password), "{log}");

    let file = folder.path().join("url");
    std::fs::write(&file, url.replace("app@", &format!("app:{password}@"))).unwrap();
    let args = ["--listen", "127.0.0.1:0", "--data-dir", data, "--database-url-file"];
    let mut process = Process::spawn(&[&args[..], &[file.to_str().unwrap()]].concat());
    let line = process.says("database: ").await;
    assert!(line.contains("PostgreSQL app") && !line.contains(password), "{line}");
    process.says("ready").await;
    process.signal("TERM").await;
    let (_, log, _) = process.ended().await;
    assert!(!log.contains(password), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_can_start_on_an_empty_database_at_once() {
    let database = TestDatabase::empty(Backend::Postgres).await;
    let start = || Process::start(database.url(), "127.0.0.1:0");
    let processes = [start().await, start().await, start().await];
    for process in &processes {
        process.serving().await;
    }
    for process in processes {
        process.signal("TERM").await;
        let (status, log, _) = process.ended().await;
        assert!(status.success(), "{log}");
    }
}
