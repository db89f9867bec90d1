//! How soon the job of a worker that is gone runs elsewhere.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{sync::mpsc, task::JoinHandle, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use watchpost::pb::{
    self, job_service_client::JobServiceClient, job_worker_service_client::JobWorkerServiceClient,
    work_jobs_request::Message as WorkerMessage, work_jobs_response::Message as ServerMessage,
};

use crate::{
    job_crash::proxy::Proxy,
    jobs::{say, wanted},
    latencies,
    server::Server,
};

const RESCUES: u64 = 10;

/// How long it takes until the job of a worker runs elsewhere: one whose connection ends as that of a killed process
/// does, and one that goes silent as a machine without power does.
pub async fn measure(server: &Server) {
    // The server is patient for a while after its start.
    sleep(Duration::from_secs(5)).await;
    let listen = server.address.trim_start_matches("http://");
    let (mut killed, mut silent) = (Vec::new(), Vec::new());
    for number in 0..RESCUES {
        for (times, kill) in [(&mut killed, true), (&mut silent, false)] {
            let mut client = JobServiceClient::new(server.connect().await);
            client.create_job(wanted()).await.unwrap();
            let proxy = Proxy::to(listen.parse().unwrap()).await;
            let through = Channel::from_shared(format!("http://{}", proxy.address));
            let through = through.unwrap().connect().await.unwrap();
            let first = one(through, format!("lost-{number}")).await;
            // It may be anywhere between two heartbeats.
            sleep(Duration::from_millis(number * 1_000 / RESCUES)).await;
            let gone = Instant::now();
            if kill {
                proxy.cut();
            } else {
                proxy.forward(false);
            }
            let second = one(server.connect().await, format!("rescuer-{number}")).await;
            times.push(gone.elapsed());
            first.1.abort();
            let completion =
                pb::JobCompletion { job_id: second.0.job.unwrap().id, lease_id: second.0.lease_id, result: None };
            let request = pb::CompleteJobsRequest { completions: vec![completion] };
            let mut workers = JobWorkerServiceClient::new(server.connect().await);
            workers.complete_jobs(request).await.unwrap();
            second.1.abort();
        }
    }
    let values = json!({ "killed": latencies(killed), "silent": latencies(silent) });
    server.report("jobs_rescue", "<= 5 s", &values);
}

/// A worker with one job, that sends heartbeats until its task is aborted.
async fn one(channel: Channel, name: String) -> (pb::ClaimedJob, JoinHandle<()>) {
    let (says, requests) = mpsc::channel(16);
    let hello = pb::WorkerHello { worker_id: name, capacity: 1, ..Default::default() };
    say(&says, 0, WorkerMessage::Hello(hello)).await;
    let mut worker = JobWorkerServiceClient::new(channel);
    let told = worker.work_jobs(ReceiverStream::new(requests)).await;
    let mut told = told.unwrap().into_inner();
    let job = loop {
        let response = told.message().await.unwrap().unwrap();
        if let Some(ServerMessage::Job(job)) = response.message {
            break job;
        }
    };
    let task = tokio::spawn(async move {
        let (_worker, _told) = (worker, told);
        loop {
            let heartbeat = Some(WorkerMessage::Heartbeat(pb::WorkerHeartbeat {}));
            let request = pb::WorkJobsRequest { number: 0, message: heartbeat };
            // Whether it arrives is the matter that is measured.
            let _ = says.send(request).await;
            sleep(Duration::from_secs(1)).await;
        }
    });
    (job, task)
}
