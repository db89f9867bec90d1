//! The key file: missing, exposed, replaced, and rotated by a process that is killed.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use watchpost::pb;

use super::{SECRET, delivery_when, get_channel, of_alert, raise, telling, webhook};
use crate::{
    metrics::get,
    support::{
        PATIENCE, TestServer,
        calls::{Reply, failed},
        database::{Backend, TestDatabase, on_both},
        eventually,
        process::{Process, command},
        receiver::Receiver,
        seed,
    },
};

async fn start(database: TestDatabase, key: &Path) -> TestServer {
    TestServer::start_with(database, |settings| {
        settings.notification_networks = vec!["127.0.0.0/8".parse().unwrap()];
        settings.notification_retry = Duration::from_millis(20);
        settings.metrics_listen = Some("127.0.0.1:0".into());
        settings.secret_key_file = Some(key.to_path_buf());
    })
    .await
}

async fn create(server: &TestServer, name: &str, url: String) -> Reply<pb::NotificationChannel> {
    let request = pb::CreateNotificationChannelRequest { notification_channel: Some(webhook(name, url)) };
    server.channels().create_notification_channel(request).await
}

/// Waits until health says this of deliveries.
async fn deliveries_are(server: &TestServer, expected: ServingStatus) {
    eventually(&format!("health says {expected:?} of deliveries"), async || {
        let request = HealthCheckRequest { service: "watchpost.v1.DeliveryService".into() };
        let mut health = HealthClient::new(server.channel.clone());
        health.check(request).await.unwrap().into_inner().status() == expected
    })
    .await;
}

/// Runs `watchpost keys` to its end, or kills it after a time. Returns its exit code and output.
async fn keys(
    database: &TestDatabase,
    key: &Path,
    args: &[&str],
    kill_after: Option<Duration>,
) -> (Option<i32>, String) {
    let key = key.to_str().unwrap();
    let mut command = command(&[&["--database-url", database.url(), "--secret-key-file", key, "keys"], args].concat());
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    if let Some(after) = kill_after {
        sleep(after).await;
        let _ = child.kill().await;
    }
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[on_both]
async fn a_missing_key_is_told_everywhere_and_not_replaced(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let (key, away) = (folder.path().join("secret.key"), folder.path().join("away"));
    let server = start(TestDatabase::migrated(backend).await, &key).await;
    assert!(!key.exists(), "it is made when it is first needed");
    server.camera("door").await;
    let receiver = Receiver::start().await;
    let channel = server.notification_channel(webhook("ops", receiver.url())).await;
    server.rule(telling(&["ops"])).await;
    assert!(key.exists());
    let database = server.stop().await;

    fs::rename(&key, &away).unwrap();
    let server = start(database, &key).await;
    let alert = raise(&server).await;
    deliveries_are(&server, ServingStatus::NotServing).await;
    let metrics = server.metrics_address().unwrap();
    let (status, details) = get(metrics, "/readyz?verbose").await;
    assert!(status == 200 && details.contains("secret.key is missing"), "{details}");
    let (_, text) = get(metrics, "/metrics").await;
    for line in ["watchpost_unreadable_channels 1", "watchpost_secret_key_readable 0"] {
        assert!(text.lines().any(|said| said == line), "{line}");
    }
    let told = get_channel(&server, &channel.id).await;
    assert!(told.secrets_problem.unwrap().contains("is missing"));
    let request = pb::ListNotificationChannelsRequest::default();
    let listed = server.channels().list_notification_channels(request).await.unwrap().into_inner();
    assert!(listed.notification_channels[0].secrets_problem.is_some());
    let held = delivery_when(&server, &alert.id, |delivery| delivery.last_error.is_some()).await;
    assert!(held.last_error.clone().unwrap().contains("is missing"));
    assert_eq!((held.status(), held.attempts), (pb::DeliveryStatus::Queued, 0));
    failed(create(&server, "more", receiver.url()).await, Code::FailedPrecondition, "SECRETS_UNREADABLE");
    let request =
        pb::RotateSigningSecretRequest { id: channel.id.clone(), signing_secret: SECRET.into(), ..Default::default() };
    let rotated = server.channels().rotate_signing_secret(request).await;
    failed(rotated, Code::FailedPrecondition, "SECRETS_UNREADABLE");
    assert!(!key.exists(), "it is not replaced");

    // Once it is back, all goes on without a restart.
    fs::rename(&away, &key).unwrap();
    receiver.wait_for(1).await;
    deliveries_are(&server, ServingStatus::Serving).await;
    assert_eq!(get_channel(&server, &channel.id).await, channel);
    create(&server, "more", receiver.url()).await.unwrap();
    server.stop().await;
}

#[on_both]
async fn a_key_that_every_user_can_read_is_refused(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("secret.key");
    fs::write(&key, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let server = start(TestDatabase::migrated(backend).await, &key).await;
    let url = || "https://example.com/hook".to_string();
    let status = failed(create(&server, "ops", url()).await, Code::FailedPrecondition, "SECRETS_UNREADABLE");
    assert!(status.message().contains("mode 644") && status.message().contains("mode 600"), "{status:?}");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    create(&server, "ops", url()).await.unwrap();
    server.stop().await;
}

#[on_both]
async fn a_rotation_that_is_killed_loses_no_secret_and_is_finished_by_the_next(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("secret.key");
    let server = start(TestDatabase::migrated(backend).await, &key).await;
    server.camera("door").await;
    let receiver = Receiver::start().await;
    for number in 0..40 {
        create(&server, &format!("c{number}"), receiver.url()).await.unwrap();
    }
    server.rule(telling(&["c7"])).await;
    let database = server.stop().await;
    let seed = seed(fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let first = fs::read_to_string(&key).unwrap();
    for _ in 0..12 {
        let after = Duration::from_millis(random.u64(..400));
        keys(&database, &key, &["rotate"], Some(after)).await;
        let (code, status) = keys(&database, &key, &["status"], None).await;
        assert!(code == Some(0) && status.contains("unreadable 0\n"), "seed {seed}: {status}");
    }
    let (code, status) = keys(&database, &key, &["rotate"], None).await;
    assert_eq!(code, Some(0), "seed {seed}");
    let is_done = |status: &str| {
        let current = status.lines().find(|line| line.starts_with("current "));
        current.is_some_and(|line| line.ends_with(" channels 40"))
    };
    assert!(is_done(&status), "seed {seed}: {status}");
    assert_eq!(fs::read_to_string(&key).unwrap().lines().count(), 2, "{status}");
    let (_, status) = keys(&database, &key, &["rotate"], None).await;
    assert!(is_done(&status) && !fs::read_to_string(&key).unwrap().contains(&first), "{status}");

    // What is staged is used by the next rotation and not before, and a server that runs notices both.
    let staged = keys(&database, &key, &["rotate", "--stage"], None).await;
    assert!(is_done(&staged.1) && staged.1.contains("staged "), "{staged:?}");
    let server = start(database, &key).await;
    let alert = raise(&server).await;
    delivery_when(&server, &alert.id, |delivery| delivery.delivered_at.is_some()).await;
    assert_eq!(of_alert(&server, &alert.id).await.len(), 1);
    if backend == Backend::Postgres {
        keys(&server.database, &key, &["rotate"], None).await;
        keys(&server.database, &key, &["rotate"], None).await;
        let alert = raise(&server).await;
        delivery_when(&server, &alert.id, |delivery| delivery.delivered_at.is_some()).await;
        create(&server, "new", receiver.url()).await.unwrap();
    }
    let database = server.stop().await;

    // A key that is lost is replaced only if somebody says so.
    fs::remove_file(&key).unwrap();
    assert_eq!(keys(&database, &key, &["rotate"], None).await.0, Some(1));
    assert_eq!(keys(&database, &key, &["replace"], None).await.0, Some(64));
    assert!(!key.exists());
    let (code, status) = keys(&database, &key, &["replace", "--yes"], None).await;
    assert!(code == Some(0) && !status.contains("unreadable 0\n") && key.exists(), "{status}");
}

#[tokio::test]
async fn files_are_for_their_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut process = Process::spawn(&["--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()]);
    process.says("ready").await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    let modes = || {
        let files = fs::read_dir(&data).unwrap().map(|file| file.unwrap().path());
        files.map(|path| (mode(&path), path)).collect::<Vec<_>>()
    };
    assert!(modes().len() >= 3, "{:?}", modes());
    assert!(modes().iter().all(|(mode, _)| *mode == 0o600), "{:?}", modes());
    process.signal("TERM").await;
    process.ended().await;
    // Older versions left them readable.
    for (_, path) in modes() {
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    }
    fs::set_permissions(&data, Permissions::from_mode(0o755)).unwrap();
    let mut process = Process::spawn(&["--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()]);
    process.says("should have mode 700").await;
    process.says("ready").await;
    assert!(modes().iter().all(|(mode, _)| *mode == 0o600), "{:?}", modes());
    process.signal("TERM").await;
    process.ended().await;
}
