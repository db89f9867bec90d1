//! `watchpost top`: the real binary in a terminal, on a real server.

use watchpost::pb;

use crate::support::{
    TestServer, always,
    database::{Backend, TestDatabase, on_both},
    fake_nvml::{Card, FakeNvml},
    process::command,
    terminal::Terminal,
};

const SIZE: (u16, u16) = (30, 120);

/// A server with the GPUs of this driver.
async fn start(database: TestDatabase, fake: &FakeNvml, listen: &str) -> TestServer {
    TestServer::start_with(database, |settings| {
        settings.nvml_library = Some(fake.library());
        settings.host = Some("camera-box".into());
        settings.listen = listen.into();
    })
    .await
}

/// Whether there is an alert of this camera in this status.
fn has_alert<'a>(camera: &'a str, status: &'a str) -> impl Fn(&str) -> bool + 'a {
    move |text| {
        let mut lines = text.lines();
        lines.any(|line| line.contains(camera) && line.contains(status))
    }
}

#[on_both]
async fn gpus_and_alerts_are_shown_across_a_restart_of_the_server(backend: Backend) {
    let fake = FakeNvml::new(&[Card::geforce("GPU-a")]);
    let server = start(TestDatabase::migrated(backend).await, &fake, "127.0.0.1:0").await;
    let address = server.address().to_string();
    server.camera("front_door").await;
    server.camera("garage").await;
    server.rule(always("Somebody is there")).await;
    server.ingest("front_door", vec![]).await;

    let mut top = Terminal::start(&format!("top --server {address}"), SIZE);
    top.shows("a GPU", |text| text.contains("NVIDIA GeForce RTX 4080 SUPER  camera-box") && text.contains("37%]"))
        .await;
    top.shows("the alert there was", has_alert("front_door", "pending")).await;
    assert!(top.text().contains("Somebody is there"), "{}", top.text());
    assert_eq!(top.taken(), (true, true));

    // Stopped, and started again on the same port.
    let database = server.stop().await;
    top.shows("the loss", |text| text.contains("reconnecting since")).await;
    top.shows("stale", |text| text.contains("stale")).await;
    let server = start(database, &fake, &address).await;
    top.shows("the return", |text| text.contains(" connected since")).await;
    top.shows("a fresh GPU", |text| !text.contains("stale")).await;

    let ingested = server.ingest("garage", vec![]).await;
    top.shows("the new alert", has_alert("garage", "pending")).await;
    assert!(has_alert("front_door", "pending")(&top.text()), "{}", top.text());
    let request = pb::AcknowledgeAlertRequest { id: ingested.alerts[0].id.clone(), ..Default::default() };
    server.alerts().acknowledge_alert(request).await.unwrap();
    top.shows("that it is acknowledged", has_alert("garage", "acknowledged")).await;

    top.press("?").await;
    top.shows("the help", |text| text.contains("scroll a page")).await;
    top.press("s").await;
    top.shows("no help", |text| !text.contains("scroll a page")).await;
    top.press("s").await;
    top.shows("the other order", |text| text.contains("sort: utilization")).await;
    top.press("q").await;
    let left = top.ended().await;
    assert!(left.contains("ended with 0") && !left.contains("NVIDIA"), "{left}");
    server.stop().await;
}

#[tokio::test]
async fn it_goes_on_with_what_there_is_on_another_database() {
    let fake = FakeNvml::new(&[]);
    let migrated = || TestDatabase::migrated(Backend::Sqlite);
    let server = start(migrated().await, &fake, "127.0.0.1:0").await;
    let address = server.address().to_string();
    for camera in ["front_door", "garage"] {
        server.camera(camera).await;
    }
    server.rule(always("one")).await;
    server.ingest("front_door", vec![]).await;
    let mut top = Terminal::start(&format!("top --server http://{address}"), SIZE);
    top.shows("an alert", has_alert("front_door", "pending")).await;
    server.stop().await;

    let server = start(migrated().await, &fake, &address).await;
    top.shows("nothing", |text| text.contains("No alerts.")).await;
    server.camera("garage").await;
    server.rule(always("two")).await;
    server.ingest("garage", vec![]).await;
    top.shows("the new alert", has_alert("garage", "pending")).await;
    top.press("\x1b").await;
    assert!(top.ended().await.contains("ended with 0"));
    server.stop().await;
}

#[tokio::test]
async fn without_a_server_it_says_so_and_ends_as_it_is_told() {
    for (way, size) in [("TERM", (10, 40)), ("INT", (3, 30)), ("\x03", (24, 80))] {
        // Nothing listens on the port of TCP's multiplexer.
        let mut top = Terminal::start("top --server 127.0.0.1:1", size);
        top.shows("the attempt", |text| text.contains("connecting since")).await;
        if size.1 >= 80 {
            top.shows("why", |text| text.contains("refused")).await;
        }
        if way.len() > 1 {
            top.signal(way).await;
        } else {
            top.press(way).await;
        }
        top.ended().await;
    }
}

#[tokio::test]
async fn without_a_terminal_it_ends_with_64_and_one_line() {
    let output = command(&["top"]).output().await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(64), 0));
    assert_eq!(stderr, "watchpost: standard output is not a terminal\n");
}
