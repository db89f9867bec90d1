//! Workers and servers that are killed, connections that are cut or hang, and a database that goes away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use sea_orm::Database;
use tokio::{task::JoinHandle, time::sleep};
use watchpost::pb;

use super::story;
use crate::{
    job_crash::{self, Killable, Plan, workers},
    support::{
        TestServer,
        database::{Backend, Cluster, TestDatabase},
        process::Process,
        seed,
    },
};

/// The real binary on a database.
struct Server<'a> {
    database: &'a TestDatabase,
    listen: String,
    process: Option<Process>,
}

impl Killable for Server<'_> {
    async fn start(&mut self) {
        self.process = Some(Process::start(self.database.url(), &self.listen).await);
    }

    async fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill().await;
        }
    }
}

async fn killed(backend: Backend, default_seed: u64) {
    let database = TestDatabase::migrated(backend).await;
    let listen = format!("127.0.0.1:{}", free_port());
    let mut server = Server { database: &database, listen: listen.clone(), process: None };
    server.start().await;
    let db = database.connect().await;
    let plan = Plan { seed: seed(default_seed), cycles: 6, jobs: 200 };
    let problems = job_crash::run(&mut server, &db, &listen, plan).await;
    assert!(problems.is_empty(), "{problems:#?}");
    server.kill().await;
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_survive_kills_and_cuts_on_sqlite() {
    killed(Backend::Sqlite, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_survive_kills_and_cuts_on_postgres() {
    killed(Backend::Postgres, 2).await;
}

/// A worker without the fence: it reports under whatever lease the job has, instead of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_past_the_fence_does_not_go_unnoticed() {
    let server = TestServer::start(Backend::Sqlite).await;
    let db = server.database.connect().await;
    super::create(&server, super::wanted("export")).await;
    let request =
        pb::ClaimJobsRequest { lease_duration: super::span(Duration::from_secs(1)), ..super::claim("stale", 1) };
    let stale = super::claim_with(&server, request).await.remove(0);
    let current = super::claim_one(&server, "current").await;
    story::holds(&db).await;
    let stolen = pb::JobCompletion {
        job_id: super::id(&stale),
        lease_id: current.lease_id,
        result: Some(workers::told(&stale.lease_id)),
    };
    let request = pb::CompleteJobsRequest { completions: vec![stolen] };
    let completed = server.job_workers().complete_jobs(request).await;
    completed.expect("without the fence it is let through");
    let problems = story::problems(&db).await;
    let found = problems.iter().any(|problem| problem.contains("a worker whose lease was over"));
    assert!(found, "{problems:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_survive_restarts_of_postgres() {
    let cluster = Cluster::start().await;
    let url = cluster.url("postgres");
    let listen = format!("127.0.0.1:{}", free_port());
    let server = Process::start(&url, &listen).await;
    server.serving().await;
    let address = format!("http://{listen}");
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let run_seed = seed(3);
    let mut random = Rng::with_seed(run_seed);
    let working: Vec<JoinHandle<()>> = (0..3)
        .map(|number| {
            let seed = random.u64(..);
            tokio::spawn(workers::work(number, address.clone(), seed, stop.clone()))
        })
        .collect();
    let producer = tokio::spawn(workers::produce(address.clone(), 150, run_seed, made.clone()));
    for _ in 0..2 {
        sleep(Duration::from_millis(random.u64(300..1_500))).await;
        cluster.restart().await;
    }
    producer.await.unwrap();
    let db = Database::connect(&url).await.unwrap();
    let problems = job_crash::end(&db, made.load(Ordering::Relaxed)).await;
    assert!(problems.is_empty(), "{problems:#?}");
    stop.store(true, Ordering::Relaxed);
    for worker in working {
        worker.abort();
    }
    server.kill().await;
}
