//! Workers and servers that are killed, connections that are cut or hang, and a database that goes away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use sea_orm::{EntityTrait, QuerySelect};
use serde_json::json;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use watchpost::{
    entity::job,
    pb::{
        self, job_service_client::JobServiceClient,
        job_worker_service_client::JobWorkerServiceClient, work_jobs_request::Message as Says,
        work_jobs_response::Message as Told,
    },
};

use super::story;
use crate::support::{
    calls::object,
    database::{Backend, TestDatabase},
    process::Process,
    proxy::Proxy,
};

/// How long everything has to come to its end.
const END: Duration = Duration::from_mins(2);

/// A worker that works until it is killed, and then begins anew: most jobs it completes, some fail, some it is
/// killed over, some it does not stop although it has lost them.
async fn work(number: u64, address: String, seed: u64, stop: Arc<AtomicBool>) {
    let mut random = Rng::with_seed(seed);
    while !stop.load(Ordering::Relaxed) {
        let life = Duration::from_millis(random.u64(100..3_000));
        let _ = timeout(life, live(number, &address, random.fork())).await;
        sleep(Duration::from_millis(random.u64(1..50))).await;
    }
}

async fn live(number: u64, address: &str, mut random: Rng) -> Option<()> {
    let endpoint = Endpoint::from_shared(address.to_string()).unwrap();
    let endpoint = endpoint.connect_timeout(Duration::from_secs(1));
    let channel = endpoint.connect().await.ok()?;
    let (says, requests) = mpsc::channel(1_000);
    let hello = pb::WorkerHello {
        worker_id: format!("worker-{number}"),
        capacity: 8,
        lease_duration: super::span(Duration::from_secs(1)),
        ..Default::default()
    };
    say(&says, Says::Hello(hello)).await?;
    let mut client = JobWorkerServiceClient::new(channel);
    let told = client.work_jobs(ReceiverStream::new(requests)).await;
    let mut told = told.ok()?.into_inner();
    let mut beats = tokio::time::interval(Duration::from_millis(300));
    loop {
        let response = tokio::select! {
            _ = beats.tick() => {
                say(&says, Says::Heartbeat(pb::WorkerHeartbeat {})).await?;
                continue;
            }
            response = told.message() => response.ok()??,
        };
        match response.message? {
            Told::Job(job) => {
                let works = Duration::from_millis(random.u64(0..40));
                let says = says.clone();
                let report = report(&job, &mut random);
                tokio::spawn(async move {
                    sleep(works).await;
                    if let Some(report) = report {
                        let _ = say(&says, report).await;
                    }
                });
            }
            Told::Cancel(cancel) => {
                let acknowledged = pb::AcknowledgeJobCancellationRequest {
                    job_id: cancel.job_id,
                    lease_id: cancel.lease_id,
                };
                say(&says, Says::AcknowledgeCancellation(acknowledged)).await?;
            }
            Told::Welcome(_)
            | Told::LeaseLost(_)
            | Told::Accepted(_)
            | Told::Refused(_)
            | Told::Draining(_)
            | Told::ServerTime(_) => {}
        }
    }
}

/// What a worker says of a job in the end. It tells under which lease it worked.
fn report(claimed: &pb::ClaimedJob, random: &mut Rng) -> Option<Says> {
    let (job_id, lease_id) = (super::id(claimed), claimed.lease_id.clone());
    Some(match random.u8(0..20) {
        0 => return None,
        1 => Says::Fail(pb::FailJobRequest {
            retryable: Some(random.u8(0..4) > 0),
            retry_after: super::span(Duration::from_millis(random.u64(0..200))),
            ..super::failure(claimed)
        }),
        2 => Says::Release(pb::ReleaseJobRequest {
            job_id,
            lease_id,
            ..Default::default()
        }),
        3 => Says::Progress(pb::UpdateJobProgressRequest {
            job_id,
            lease_id,
            progress_percent: Some(random.i32(0..101)),
            ..Default::default()
        }),
        _ => Says::Complete(pb::JobCompletion {
            job_id,
            result: object(&json!({ "lease": lease_id })),
            lease_id,
        }),
    })
}

async fn say(says: &mpsc::Sender<pb::WorkJobsRequest>, message: Says) -> Option<()> {
    let message = Some(message);
    let request = pb::WorkJobsRequest { number: 1, message };
    says.send(request).await.ok()
}

/// Puts jobs into the queue, each by a request that is repeated until it is answered; some are cancelled.
async fn produce(address: String, jobs: u64, seed: u64, made: Arc<AtomicU64>) {
    let mut random = Rng::with_seed(seed);
    for number in 0..jobs {
        let request = pb::CreateJobRequest {
            request_id: format!("{seed}-{number}"),
            max_attempts: Some(5),
            max_rescues: Some(1_000),
            priority: Some(random.i32(0..5)),
            concurrency_key: ["", "a", "b"][random.usize(..3)].into(),
            ..super::wanted(["export", "backup"][random.usize(..2)])
        };
        let job = loop {
            if let Ok(channel) = connect(&address).await
                && let Ok(job) = JobServiceClient::new(channel)
                    .create_job(request.clone())
                    .await
            {
                break job.into_inner();
            }
            sleep(Duration::from_millis(20)).await;
        };
        made.fetch_add(1, Ordering::Relaxed);
        if random.u8(0..20) == 0
            && let Ok(channel) = connect(&address).await
        {
            let request = pb::CancelJobRequest {
                id: job.id,
                ..Default::default()
            };
            let _ = JobServiceClient::new(channel).cancel_job(request).await;
        }
        sleep(Duration::from_millis(random.u64(0..10))).await;
    }
}

async fn connect(address: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(address.to_string()).unwrap();
    let endpoint = endpoint
        .connect_timeout(Duration::from_secs(1))
        .timeout(Duration::from_secs(3));
    endpoint.connect().await
}

/// Everything that was put in comes to a legal end, and the tables tell one story.
async fn comes_to_its_end(database: &TestDatabase, made: u64) {
    let db = database.connect().await;
    let begun = Instant::now();
    loop {
        let statuses: Vec<job::JobStatus> = job::Entity::find()
            .select_only()
            .column(job::Column::Status)
            .into_tuple()
            .all(&db)
            .await
            .unwrap();
        assert_eq!(
            statuses.len() as u64,
            made,
            "none is lost, and none made twice"
        );
        let left = statuses.iter().filter(|status| !status.is_finished());
        let left = left.count();
        if left == 0 {
            break;
        }
        assert!(
            begun.elapsed() < END,
            "{left} of {made} jobs do not come to an end"
        );
        sleep(Duration::from_millis(50)).await;
    }
    story::holds(&db).await;
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Kills servers while workers are killed and connections are cut.
async fn killed(backend: Backend, seed: u64, kills: usize, jobs: u64) {
    let mut random = Rng::with_seed(seed);
    let database = TestDatabase::migrated(backend).await;
    let listen = format!("127.0.0.1:{}", free_port());
    let mut server = Process::start(database.url(), &listen).await;
    server.serving().await;
    let proxy = Arc::new(Proxy::to(listen.parse().unwrap()).await);
    let (direct, through) = (
        format!("http://{listen}"),
        format!("http://{}", proxy.address),
    );
    let (stop, made) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let workers: Vec<JoinHandle<()>> = (0..4)
        .map(|number| {
            let address = if number % 2 == 0 { &direct } else { &through };
            tokio::spawn(work(number, address.clone(), random.u64(..), stop.clone()))
        })
        .collect();
    let producer = tokio::spawn(produce(direct.clone(), jobs, seed, made.clone()));
    for _ in 0..kills {
        sleep(Duration::from_millis(random.u64(200..1_500))).await;
        match random.u8(0..3) {
            0 => proxy.cut(),
            1 => {
                proxy.forward(false);
                sleep(Duration::from_millis(random.u64(100..2_500))).await;
                proxy.cut();
                proxy.forward(true);
            }
            _ => {
                server.kill().await;
                sleep(Duration::from_millis(random.u64(1..500))).await;
                server = Process::start(database.url(), &listen).await;
            }
        }
    }
    server.serving().await;
    producer.await.unwrap();
    comes_to_its_end(&database, made.load(Ordering::Relaxed)).await;
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.abort();
    }
    server.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_survive_kills_and_cuts_on_sqlite() {
    killed(Backend::Sqlite, 1, 5, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_survive_kills_and_cuts_on_postgres() {
    killed(Backend::Postgres, 2, 5, 200).await;
}
