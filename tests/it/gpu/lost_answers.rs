//! Commits that PostgreSQL makes, and whose answers are lost.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use sea_orm::{EntityTrait, PaginatorTrait};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    time::sleep,
};
use watchpost::entity::{gpu_event, gpu_stats};

use super::{events, *};
use crate::support::{TestServer, eventually};

/// Between a server and its PostgreSQL. While `cuts` is set, whoever commits is cut off when the commit
/// has been made.
struct Proxy {
    url: String,
    cuts: Arc<AtomicBool>,
    /// How many were cut off.
    cut: Arc<AtomicUsize>,
}

impl Proxy {
    async fn start(url: &str) -> Self {
        let (rest, database) = url.rsplit_once('/').unwrap();
        let (before, server) = rest.rsplit_once('@').unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{before}@{}/{database}", listener.local_addr().unwrap());
        let proxy = Self { url, cuts: Arc::default(), cut: Arc::default() };
        let (server, cuts, cut) = (server.to_string(), proxy.cuts.clone(), proxy.cut.clone());
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(forward(client, server, cuts.clone(), cut.clone()));
            }
        });
        proxy
    }
}

async fn forward(client: TcpStream, server: TcpStream, cuts: Arc<AtomicBool>, cut: Arc<AtomicUsize>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = tokio::spawn(async move { copy(&mut from_server, &mut to_client).await });
    let mut bytes = vec![0; 65_536];
    while let Ok(count @ 1..) = from_client.read(&mut bytes).await {
        let asked = &bytes[..count];
        let commits = asked.windows(6).any(|word| word == b"COMMIT");
        let cuts_off = commits && cuts.load(Ordering::SeqCst);
        if cuts_off {
            answers.abort();
        }
        if to_server.write_all(asked).await.is_err() {
            break;
        }
        if cuts_off {
            cut.fetch_add(1, Ordering::SeqCst);
            // Time to make the commit.
            sleep(Duration::from_millis(200)).await;
            return;
        }
    }
    answers.abort();
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_not_made_again() {
    let fake = FakeNvml::new(&[events::card("GPU-1")]);
    let database = TestDatabase::migrated(Backend::Postgres).await;
    let proxy = Proxy::start(database.url()).await;
    let (library, url) = (fake.library(), proxy.url.clone());
    let server = TestServer::start_with(database, |settings| {
        settings.database_url = Some(url);
        settings.nvml_library = Some(library);
        settings.gpu_interval = Duration::from_millis(100);
        // Every sample asks everything, however slow the machine is: calls are counted below.
        settings.gpu_budget = Duration::from_secs(1);
    })
    .await;
    events::listened(&fake, "GPU-1").await;
    let stored_in = server.database.connect().await;
    for (code, announced) in [(31, 0), (79, 1)] {
        proxy.cuts.store(true, Ordering::SeqCst);
        let before = proxy.cut.load(Ordering::SeqCst);
        fake.happens("GPU-1", 8, code);
        let cut = async || proxy.cut.load(Ordering::SeqCst) >= before + 4;
        eventually("commits that are cut off", cut).await;
        proxy.cuts.store(false, Ordering::SeqCst);
        // The writer has caught up once all samples are stored that were taken under the cuts.
        let taken = fake.calls("GPU-1", "utilization") as u64;
        let stored = async || gpu_stats::Entity::find().count(&stored_in).await.unwrap();
        eventually("the samples are stored", async || stored().await >= taken).await;
        let events = async || gpu_event::Entity::find().count(&stored_in).await.unwrap();
        eventually("the event is stored", async || events().await > announced).await;
    }
    stored_in.close().await.unwrap();
    let database = server.stop().await;

    let db = database.connect().await;
    let rows = gpu_stats::Entity::find().all(&db).await.unwrap();
    let different: BTreeSet<_> = rows.iter().map(|row| row.recorded_at).collect();
    assert_eq!(rows.len(), different.len(), "doubled");
    let taken = fake.calls("GPU-1", "utilization");
    assert!((taken - 1..=taken).contains(&rows.len()), "{} of {taken}", rows.len());
    let mut codes: Vec<_> =
        gpu_event::Entity::find().all(&db).await.unwrap().into_iter().map(|event| event.code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [Some(31), Some(79)]);
    db.close().await.unwrap();
}
