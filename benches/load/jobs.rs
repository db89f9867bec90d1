//! The job queue: how fast jobs are put in, begun and worked off, beside bare SQL that writes the same rows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, TransactionTrait};
use serde_json::json;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use watchpost::pb::{
    self, job_service_client::JobServiceClient, job_worker_service_client::JobWorkerServiceClient,
    work_jobs_request::Message as WorkerMessage, work_jobs_response::Message as ServerMessage,
};

use crate::{Options, bare_jobs, job_rescue, latencies, millis, per_second, server::Server};

/// How many jobs are drained at a time.
pub const JOBS: usize = 20_000;

const WORKERS: usize = 10;
const CAPACITY: i32 = 200;
const PASSES: usize = 3;
const FINISHED: usize = 1_000_000;

/// All figures of jobs, one after the other, or the one with this name.
pub async fn run(url: Option<String>, options: &Options, name: &str) {
    let server = Server::start(url.or(options.database_url.clone()));
    server.serving().await;
    let db = connect(&server, &[]).await;
    let wanted = |figure: &str| name == "jobs" || name == figure;
    if wanted("jobs_enqueue_batch") {
        enqueue_in_batches(&server).await;
        empty(&db).await;
    }
    if wanted("jobs_enqueue_one_by_one") {
        enqueue_one_by_one(&server, options.seconds).await;
        empty(&db).await;
    }
    if wanted("jobs_start") {
        start(&server).await;
        empty(&db).await;
    }
    if wanted("jobs_rescue") {
        job_rescue::measure(&server).await;
        empty(&db).await;
    }
    if wanted("jobs_drain") {
        drain_beside_bare_sql(&server, &db).await;
    }
    if wanted("jobs_held_snapshot") && server.database == "postgres" {
        held_snapshot(&server, &db).await;
        empty(&db).await;
    }
    if wanted("jobs_finished") {
        finished(&server, &db).await;
    }
}

async fn drain_beside_bare_sql(server: &Server, db: &DatabaseConnection) {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..PASSES {
        ours.push(drain(server).await);
        empty(db).await;
        bare.push(bare_jobs::drain(server).await);
        empty(db).await;
    }
    let (ours, bare) = (median(&mut ours), median(&mut bare));
    let goal = if server.database == "postgres" {
        ">= 10000 jobs/s, >= 0.6 of bare SQL"
    } else {
        ">= 8000 jobs/s, >= 0.6 of bare SQL"
    };
    let values = json!({
        "per_second": ours,
        "bare_sql_per_second": bare,
        "of_bare_sql": ratio(ours, bare),
        "jobs": JOBS,
        "workers": WORKERS,
        "passes": PASSES,
    });
    server.report("jobs_drain", goal, &values);
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn ratio(part: f64, whole: f64) -> f64 {
    (part / whole * 100.0).round() / 100.0
}

/// A connection to the database that the server serves, on PostgreSQL with these settings.
pub async fn connect(server: &Server, settings: &[(&'static str, &'static str)]) -> DatabaseConnection {
    let url = server.url.clone().unwrap_or_else(|| {
        let file = server.folder.path().join("watchpost.db");
        format!("sqlite://{}", file.display())
    });
    let settings = settings.to_vec();
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(8)
        .sqlx_logging(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .map_sqlx_postgres_opts(move |options| options.options(settings.clone()));
    Database::connect(options).await.unwrap()
}

async fn empty(db: &DatabaseConnection) {
    for table in ["job_logs", "job_transitions", "job_attempts", "jobs", "changes"] {
        let sql = if db.get_database_backend() == sea_orm::DbBackend::Postgres {
            format!("TRUNCATE {table} CASCADE")
        } else {
            format!("DELETE FROM {table}")
        };
        db.execute_unprepared(&sql).await.unwrap();
    }
    if db.get_database_backend() == sea_orm::DbBackend::Postgres {
        db.execute_unprepared("VACUUM ANALYZE").await.unwrap();
    }
}

pub fn wanted() -> pb::CreateJobRequest {
    pb::CreateJobRequest { job: Some(pb::Job { job_type: "no_op".into(), ..Default::default() }), ..Default::default() }
}

/// Puts so many jobs into the queue.
pub async fn enqueue(channel: Channel, jobs: usize) {
    let mut client = JobServiceClient::new(channel);
    for _ in 0..jobs / 5_000 {
        let requests = vec![wanted(); 5_000];
        let batch = pb::BatchCreateJobsRequest { requests };
        let made = client.batch_create_jobs(batch).await.unwrap();
        assert_eq!(made.into_inner().created, 5_000);
    }
}

async fn enqueue_in_batches(server: &Server) {
    let mut rates = Vec::new();
    for _ in 0..PASSES {
        let begun = Instant::now();
        let mut clients = Vec::new();
        for _ in 0..2 {
            clients.push(tokio::spawn(enqueue(server.connect().await, 100_000)));
        }
        for client in clients {
            client.await.unwrap();
        }
        rates.push(per_second(200_000, begun.elapsed()));
    }
    let values = json!({ "per_second": median(&mut rates), "batch": 5_000, "clients": 2 });
    server.report("jobs_enqueue_batch", ">= 40000 jobs/s", &values);
}

async fn enqueue_one_by_one(server: &Server, seconds: u64) {
    let until = Instant::now() + Duration::from_secs(seconds);
    let begun = Instant::now();
    let mut clients: Vec<JoinHandle<Vec<Duration>>> = Vec::new();
    for _ in 0..10 {
        let mut client = JobServiceClient::new(server.connect().await);
        clients.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < until {
                let asked = Instant::now();
                client.create_job(wanted()).await.unwrap();
                times.push(asked.elapsed());
            }
            times
        }));
    }
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.unwrap());
    }
    let rate = per_second(times.len(), begun.elapsed());
    let mut values = latencies(times);
    values["per_second"] = json!(rate);
    values["clients"] = json!(10);
    server.report("jobs_enqueue_one_by_one", ">= 5000 jobs/s on PostgreSQL", &values);
}

/// A worker that completes what it is given at once.
pub async fn work(channel: Channel, name: String, done: Arc<AtomicUsize>, all: usize, finished: Arc<Notify>) {
    let (says, requests) = mpsc::channel(4_096);
    let hello = pb::WorkerHello { worker_id: name, capacity: CAPACITY, ..Default::default() };
    say(&says, 0, WorkerMessage::Hello(hello)).await;
    let mut client = JobWorkerServiceClient::new(channel);
    let told = client.work_jobs(ReceiverStream::new(requests)).await;
    let mut told = told.unwrap().into_inner();
    let mut number = 0;
    while let Some(response) = told.message().await.unwrap() {
        match response.message.unwrap() {
            ServerMessage::Job(job) => {
                number += 1;
                let completion =
                    pb::JobCompletion { job_id: job.job.unwrap().id, lease_id: job.lease_id, result: None };
                say(&says, number, WorkerMessage::Complete(completion)).await;
            }
            ServerMessage::Accepted(accepted) => {
                let accepted = accepted.numbers.len();
                if done.fetch_add(accepted, Ordering::Relaxed) + accepted >= all {
                    finished.notify_one();
                }
            }
            ServerMessage::Refused(refused) => panic!("{refused:?}"),
            ServerMessage::Welcome(_)
            | ServerMessage::Cancel(_)
            | ServerMessage::LeaseLost(_)
            | ServerMessage::Draining(_)
            | ServerMessage::ServerTime(_) => {}
        }
    }
}

pub async fn say(says: &mpsc::Sender<pb::WorkJobsRequest>, number: i64, message: WorkerMessage) {
    let message = Some(message);
    let request = pb::WorkJobsRequest { number, message };
    says.send(request).await.unwrap();
}

/// Jobs a second that ten workers complete until none is left.
async fn drain(server: &Server) -> f64 {
    enqueue(server.connect().await, JOBS).await;
    let (done, finished) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let mut channels = Vec::new();
    for _ in 0..WORKERS {
        channels.push(server.connect().await);
    }
    let begun = Instant::now();
    let workers: Vec<_> = channels
        .into_iter()
        .enumerate()
        .map(|(number, channel)| {
            let name = format!("worker-{number}");
            tokio::spawn(work(channel, name, done.clone(), JOBS, finished.clone()))
        })
        .collect();
    finished.notified().await;
    let rate = per_second(JOBS, begun.elapsed());
    for worker in workers {
        worker.abort();
    }
    rate
}

/// How long it takes until a job that is put into an idle queue has begun.
async fn start(server: &Server) {
    let (says, requests) = mpsc::channel(16);
    let hello = pb::WorkerHello { worker_id: "idle".into(), capacity: 1, ..Default::default() };
    say(&says, 0, WorkerMessage::Hello(hello)).await;
    let mut worker = JobWorkerServiceClient::new(server.connect().await);
    let told = worker.work_jobs(ReceiverStream::new(requests)).await;
    let mut told = told.unwrap().into_inner();
    let mut client = JobServiceClient::new(server.connect().await);
    let mut times = Vec::new();
    for number in 0..1_000 {
        let asked = Instant::now();
        let making = client.create_job(wanted());
        let waiting = async {
            loop {
                let response = told.message().await.unwrap().unwrap();
                if let Some(ServerMessage::Job(job)) = response.message {
                    return (job, asked.elapsed());
                }
            }
        };
        let (made, (job, time)) = tokio::join!(making, waiting);
        made.unwrap();
        times.push(time);
        let completion = pb::JobCompletion { job_id: job.job.unwrap().id, lease_id: job.lease_id, result: None };
        say(&says, number, WorkerMessage::Complete(completion)).await;
        sleep(Duration::from_millis(3)).await;
    }
    server.report("jobs_start", "p50 <= 3 ms, p99 <= 10 ms", &latencies(times));
}

/// The rate beside many jobs that are finished.
async fn finished(server: &Server, db: &DatabaseConnection) {
    let mut before = Vec::new();
    for _ in 0..PASSES {
        before.push(drain(server).await);
        empty(db).await;
    }
    bare_jobs::fill(server, FINISHED).await;
    let mut after = Vec::new();
    for _ in 0..PASSES {
        after.push(drain(server).await);
    }
    let (before, after) = (median(&mut before), median(&mut after));
    let values = json!({
        "per_second": after,
        "empty_per_second": before,
        "of_empty": ratio(after, before),
        "finished": FINISHED,
    });
    server.report("jobs_finished", ">= 0.9 of the empty table's rate", &values);
}

/// The rate while another connection holds a snapshot open.
async fn held_snapshot(server: &Server, db: &DatabaseConnection) {
    let mut normal = Vec::new();
    for _ in 0..PASSES {
        normal.push(drain(server).await);
    }
    let normal = median(&mut normal);
    let isolation = Some(sea_orm::IsolationLevel::RepeatableRead);
    let held = db.begin_with_config(isolation, None).await.unwrap();
    held.execute_unprepared("SELECT count(*) FROM jobs").await.unwrap();
    let begun = Instant::now();
    let mut rates = Vec::new();
    while begun.elapsed() < Duration::from_mins(2) {
        rates.push(drain(server).await);
    }
    let time = begun.elapsed();
    held.rollback().await.unwrap();
    let last = rates.split_off(rates.len() - rates.len() / 4);
    let last = median(&mut last.clone());
    let values = json!({
        "per_second_in_the_last_quarter": last,
        "normal_per_second": normal,
        "of_normal": ratio(last, normal),
        "held_s": millis(time) / 1_000.0,
    });
    server.report("jobs_held_snapshot", ">= 0.8 of the normal rate", &values);
}
