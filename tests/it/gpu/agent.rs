//! `watchpost agent`, as a process, with servers that come and go.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
};

use sea_orm::{DatabaseConnection, EntityTrait};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
};
use watchpost::entity::{gpu as gpus, gpu_reporter, gpu_stats};

use super::*;
use crate::support::{TestServer, eventually, eventually_some, process::Process};

/// What stands for one sample among the calls of the driver: one that is made for each.
const CALL: &str = "utilization";

/// An agent on a host that is called shed.
pub(super) fn agent(fake: &FakeNvml, server: &str, more: &[&str]) -> Process {
    let library = fake.library();
    let library = library.to_str().unwrap();
    let args = ["agent", "--server", server, "--host", "shed"];
    // Every sample asks everything, however slow the machine is: calls are counted.
    let gpus = ["--nvml-library", library, "--gpu-interval", "100ms", "--gpu-budget", "1s"];
    Process::spawn(&[&args[..], &gpus, more].concat())
}

/// Waits until there are so many samples.
async fn rows(db: &DatabaseConnection, least: usize) -> Vec<gpu_stats::Model> {
    eventually_some(&format!("{least} samples are stored"), async || {
        // While a server starts its database may be locked.
        let rows = gpu_stats::Entity::find().all(db).await.unwrap_or_default();
        (rows.len() >= least).then_some(rows)
    })
    .await
}

/// Waits until the GPU was sampled so many times more.
async fn sampled(fake: &FakeNvml, uuid: &str, more: usize) {
    let least = fake.calls(uuid, CALL) + more;
    eventually(&format!("{uuid} is sampled {more} times more"), async || fake.calls(uuid, CALL) >= least).await;
}

/// Ends the agent, which must have an answer to all it has sent.
pub(super) async fn stop(agent: Process) -> String {
    agent.signal("TERM").await;
    let (status, log, output) = agent.ended().await;
    assert_eq!((status.code(), output.as_str()), (Some(0), ""), "{log}");
    log
}

/// Between an agent and its server: forwards everything, unless it is to swallow the answers.
struct Proxy {
    url: String,
    swallow: Arc<AtomicBool>,
    /// Ends the connections that there are.
    cut: Arc<watch::Sender<()>>,
}

impl Proxy {
    async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (swallow, cut) = (Arc::<AtomicBool>::default(), Arc::new(watch::channel(()).0));
        let (swallows, cuts) = (swallow.clone(), cut.clone());
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (server, swallow) = (server.clone(), swallows.clone());
                let mut cut = cuts.subscribe();
                tokio::spawn(async move {
                    tokio::select! {
                        () = forward(client, server, &swallow) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { url, swallow, cut }
    }
}

async fn forward(client: TcpStream, server: String, swallow: &AtomicBool) {
    let server = TcpStream::connect(server).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = async {
        let mut bytes = vec![0; 4096];
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            if !swallow.load(Ordering::SeqCst) && to_client.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => {}
        () = answers => {}
    }
}

#[on_both]
async fn what_is_stored_is_not_stored_again_if_the_answer_is_lost(backend: Backend) {
    let fake = FakeNvml::new(&[Card::geforce("GPU-0")]);
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let proxy = Proxy::start(server.address().to_string()).await;
    let mut agent = agent(&fake, &proxy.url, &[]);
    agent.says("the server accepts GPU samples").await;
    for _ in 0..2 {
        let before = rows(&db, 1).await.len();
        proxy.swallow.store(true, Ordering::SeqCst);
        // The batches that were answered before, and one that is not.
        rows(&db, before + 1).await;
        sampled(&fake, "GPU-0", 15).await;
        proxy.cut.send_replace(());
        proxy.swallow.store(false, Ordering::SeqCst);
        agent.says("the server accepts GPU samples again").await;
    }
    stop(agent).await;
    let times: Vec<_> = rows(&db, 1).await.into_iter().map(|row| row.recorded_at).collect();
    let different: BTreeSet<_> = times.iter().collect();
    assert_eq!(times.len(), different.len(), "doubled");
    let taken = fake.calls("GPU-0", CALL);
    assert!((taken - 1..=taken).contains(&times.len()), "{} of {taken}", times.len());
    db.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn nothing_is_lost_or_doubled_while_the_server_is_killed(backend: Backend) {
    let fake = FakeNvml::new(&[Card::geforce("GPU-0"), Card::h200("GPU-1")]);
    let database = TestDatabase::empty(backend).await;
    let mut server = Process::start(database.url(), "127.0.0.1:0").await;
    let url = server.address.clone();
    server.serving().await;
    let db = database.connect().await;
    let mut agent = agent(&fake, &url, &[]);
    agent.says("the server accepts GPU samples").await;
    for _ in 0..3 {
        // Killed with batches on their way, as likely as not.
        rows(&db, gpu_stats::Entity::find().all(&db).await.unwrap().len() + 4).await;
        server.kill().await;
        sampled(&fake, "GPU-0", 5).await;
        server = Process::start(database.url(), url.trim_start_matches("http://")).await;
        server.serving().await;
        agent.says("the server accepts GPU samples again").await;
    }
    sampled(&fake, "GPU-0", 3).await;
    let log = stop(agent).await;
    assert!(log.contains("all samples are reported"), "{log}");

    let rows = rows(&db, 1).await;
    for uuid in ["GPU-0", "GPU-1"] {
        let of = rows.iter().filter(|row| row.gpu_uuid.as_deref() == Some(uuid));
        let times: Vec<_> = of.map(|row| row.recorded_at).collect();
        let different: BTreeSet<_> = times.iter().collect();
        assert_eq!(times.len(), different.len(), "doubled");
        // The last one may have been under way at the end.
        let taken = fake.calls(uuid, CALL);
        assert!((taken - 1..=taken).contains(&times.len()), "{} of {taken}", times.len());
    }
    let reporters = gpu_reporter::Entity::find().all(&db).await.unwrap();
    assert_eq!((reporters.len(), reporters[0].lost, &*reporters[0].host), (1, 0, "shed"));
    let gpus = gpus::Entity::find().all(&db).await.unwrap();
    let told: Vec<_> = gpus.iter().map(|gpu| (&*gpu.host, gpu.driver_version.as_deref().unwrap())).collect();
    assert_eq!(told, [("shed", "580.95.05"); 2]);
    db.close().await.unwrap();
}

#[on_both]
async fn what_is_dropped_is_counted(backend: Backend) {
    let fake = FakeNvml::new(&[Card::geforce("GPU-0")]);
    let database = TestDatabase::empty(backend).await;
    let server = Process::start(database.url(), "127.0.0.1:0").await;
    let url = server.address.clone();
    server.serving().await;
    let mut agent = agent(&fake, &url, &["--report-buffer", "5"]);
    agent.says("the server accepts GPU samples").await;
    server.kill().await;
    // The ones in the buffer, those on their way, and some.
    sampled(&fake, "GPU-0", 30).await;
    let server = Process::start(database.url(), url.trim_start_matches("http://")).await;
    server.serving().await;
    agent.says("the server accepts GPU samples again").await;
    stop(agent).await;

    let db = database.connect().await;
    let rows = rows(&db, 1).await.len();
    let reporters = gpu_reporter::Entity::find().all(&db).await.unwrap();
    let lost = usize::try_from(reporters[0].lost).unwrap();
    let taken = fake.calls("GPU-0", CALL);
    assert!(lost > 0);
    assert!((taken - 1..=taken).contains(&(rows + lost)), "{rows} + {lost} of {taken}");
    drop(server);
    db.close().await.unwrap();
}

#[tokio::test]
async fn an_agent_without_its_server_ends_in_time_and_says_what_is_lost() {
    let fake = FakeNvml::new(&[Card::geforce("GPU-0")]);
    // A port where nobody listens.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let mut agent = agent(&fake, &url, &["--shutdown-grace", "300ms"]);
    agent.says("the server does not accept GPU samples").await;
    sampled(&fake, "GPU-0", 2).await;
    let log = stop(agent).await;
    assert!(log.contains("could not be reported"), "{log}");
}
