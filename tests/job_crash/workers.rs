//! Workers that die and come back, and a producer that does not give up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use prost_types::{Struct, Value, value::Kind};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use watchpost::pb::{
    self, job_service_client::JobServiceClient, job_worker_service_client::JobWorkerServiceClient,
    work_jobs_request::Message as WorkerMessage, work_jobs_response::Message as ServerMessage,
};

#[expect(clippy::unnecessary_wraps, reason = "the fields of messages are options")]
fn span(duration: Duration) -> Option<prost_types::Duration> {
    Some(duration.try_into().unwrap())
}

/// A result that says under which lease it was worked out.
pub fn told(lease_id: &str) -> Struct {
    let lease = Value { kind: Some(Kind::StringValue(lease_id.into())) };
    Struct { fields: [("lease".to_string(), lease)].into() }
}

/// A worker that works until it is killed, and then begins anew: most jobs it completes, some fail, some it is
/// killed over, some it does not stop although it has lost them.
pub async fn work(number: u64, address: String, seed: u64, stop: Arc<AtomicBool>) {
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
        lease_duration: span(Duration::from_secs(1)),
        ..Default::default()
    };
    say(&says, WorkerMessage::Hello(hello)).await?;
    let mut client = JobWorkerServiceClient::new(channel);
    let told = client.work_jobs(ReceiverStream::new(requests)).await;
    let mut told = told.ok()?.into_inner();
    let mut beats = tokio::time::interval(Duration::from_millis(300));
    loop {
        let response = tokio::select! {
            _ = beats.tick() => {
                say(&says, WorkerMessage::Heartbeat(pb::WorkerHeartbeat {})).await?;
                continue;
            }
            response = told.message() => response.ok()??,
        };
        match response.message? {
            ServerMessage::Job(job) => {
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
            ServerMessage::Cancel(cancel) => {
                let acknowledged =
                    pb::AcknowledgeJobCancellationRequest { job_id: cancel.job_id, lease_id: cancel.lease_id };
                say(&says, WorkerMessage::AcknowledgeCancellation(acknowledged)).await?;
            }
            ServerMessage::Welcome(_)
            | ServerMessage::LeaseLost(_)
            | ServerMessage::Accepted(_)
            | ServerMessage::Refused(_)
            | ServerMessage::Draining(_)
            | ServerMessage::ServerTime(_) => {}
        }
    }
}

/// What a worker says of a job in the end. It tells under which lease it worked.
fn report(claimed: &pb::ClaimedJob, random: &mut Rng) -> Option<WorkerMessage> {
    let (job_id, lease_id) = (claimed.job.as_ref().unwrap().id.clone(), claimed.lease_id.clone());
    Some(match random.u8(0..20) {
        0 => return None,
        1 => WorkerMessage::Fail(pb::FailJobRequest {
            retryable: Some(random.u8(0..4) > 0),
            retry_after: span(Duration::from_millis(random.u64(0..200))),
            error_message: "no".into(),
            job_id,
            lease_id,
            ..Default::default()
        }),
        2 => WorkerMessage::Release(pb::ReleaseJobRequest { job_id, lease_id, ..Default::default() }),
        3 => WorkerMessage::Progress(pb::UpdateJobProgressRequest {
            job_id,
            lease_id,
            progress_percent: Some(random.i32(0..101)),
            ..Default::default()
        }),
        _ => WorkerMessage::Complete(pb::JobCompletion { job_id, result: Some(told(&lease_id)), lease_id }),
    })
}

async fn say(says: &mpsc::Sender<pb::WorkJobsRequest>, message: WorkerMessage) -> Option<()> {
    let message = Some(message);
    let request = pb::WorkJobsRequest { number: 1, message };
    says.send(request).await.ok()
}

/// Puts jobs into the queue, each by a request that is repeated until it is answered; some are cancelled.
pub async fn produce(address: String, jobs: u64, seed: u64, made: Arc<AtomicU64>) {
    let mut random = Rng::with_seed(seed);
    for number in 0..jobs {
        let job = pb::Job {
            max_attempts: Some(5),
            max_rescues: Some(1_000),
            priority: Some(random.i32(0..5)),
            concurrency_key: ["", "a", "b"][random.usize(..3)].into(),
            job_type: ["export", "backup"][random.usize(..2)].into(),
            ..Default::default()
        };
        let request = pb::CreateJobRequest { job: Some(job), request_id: format!("{seed}-{number}") };
        let job = loop {
            if let Ok(channel) = connect(&address).await
                && let Ok(job) = JobServiceClient::new(channel).create_job(request.clone()).await
            {
                break job.into_inner();
            }
            sleep(Duration::from_millis(20)).await;
        };
        made.fetch_add(1, Ordering::Relaxed);
        if random.u8(0..20) == 0
            && let Ok(channel) = connect(&address).await
        {
            let request = pb::CancelJobRequest { id: job.id, ..Default::default() };
            let _ = JobServiceClient::new(channel).cancel_job(request).await;
        }
        sleep(Duration::from_millis(random.u64(0..10))).await;
    }
}

async fn connect(address: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(address.to_string()).unwrap();
    let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).timeout(Duration::from_secs(3));
    endpoint.connect().await
}
