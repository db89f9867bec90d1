//! Connections whose clients do nothing good.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    metrics::get,
    support::{
        PATIENCE,
        database::{Backend, TestDatabase},
        process::Process,
    },
};

/// Time within which a client that says nothing is cut off, and some more.
const CUT_OFF_WITHIN: Duration = Duration::from_secs(15);

async fn start(arguments: &[&str]) -> (TestDatabase, Process, String) {
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let process = Process::start_with(database.url(), "127.0.0.1:0", &[], arguments).await;
    process.serving().await;
    let address = process.address.trim_start_matches("http://").to_string();
    (database, process, address)
}

/// Waits until the server closes the connection.
async fn closed(stream: &mut TcpStream, within: Duration) {
    let mut rest = Vec::new();
    let reading = timeout(within, stream.read_to_end(&mut rest)).await;
    // A reset closes it as well.
    let _ = reading.expect("the server closes the connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_too_many_is_closed_and_the_others_go_on() {
    let (_database, process, address) = start(&["--max-connections", "16"]).await;
    let mut silent = Vec::new();
    // Earlier connections of this test may still be counted.
    loop {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let mut byte = [0];
        match timeout(Duration::from_millis(200), stream.read(&mut byte)).await {
            Ok(_) => break,
            Err(_) => silent.push(stream),
        }
        assert!(silent.len() <= 16, "a connection is refused");
    }
    drop(silent);
    process.serving().await;
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_begin_are_cut_off() {
    let (_database, process, address) = start(&[]).await;
    let channel = process.serving().await;
    let mut silent = TcpStream::connect(&address).await.unwrap();
    let mut halting = TcpStream::connect(&address).await.unwrap();
    halting.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    tokio::join!(closed(&mut silent, CUT_OFF_WITHIN), closed(&mut halting, CUT_OFF_WITHIN));
    let health = crate::support::process::overall(&channel).await;
    assert!(health.is_some(), "a client that began is served on");
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_by_http_beside_clients_that_say_nothing() {
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let arguments = ["--metrics-listen", "127.0.0.1:0"];
    let mut process = Process::start_with(database.url(), "127.0.0.1:0", &[], &arguments).await;
    let address = process.metrics_address().await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    // Before any of them has used up the time that it has to ask.
    let answer = timeout(Duration::from_secs(4), get(address.parse().unwrap(), "/healthz"));
    let (status, body) = answer.await.expect("an answer at once");
    assert_eq!((status, body.as_str()), (200, "ok\n"));
    let scrapes = (0..20).map(|_| get(address.parse().unwrap(), "/metrics"));
    let scrapes = timeout(PATIENCE, futures_util::future::join_all(scrapes)).await;
    for (status, body) in scrapes.expect("every scrape is answered") {
        assert_eq!(status, 200);
        assert!(body.contains("watchpost_connections_max "), "{body}");
    }
    process.kill().await;
}
