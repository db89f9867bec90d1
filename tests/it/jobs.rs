//! The job queue.

mod bulk;
mod cancel;
mod command;
mod crash;
mod create;
mod filters;
mod get;
mod limits;
mod logs;
mod queues;
mod retention;
mod retries;
mod rows;
mod schedules;
mod stats;
pub(crate) mod stream;
mod tail;
mod types;
mod unary;
mod watch;

use std::time::Duration;

use watchpost::pb;

use crate::job_crash::story;
use crate::support::{PATIENCE, TestServer, calls::Reply, eventually_ok};

/// A length of time on the wire.
#[expect(clippy::unnecessary_wraps, reason = "the fields of messages are options")]
fn span(duration: Duration) -> Option<prost_types::Duration> {
    Some(duration.try_into().unwrap())
}

/// A job of this type, to be made.
fn wanted(job_type: &str) -> pb::Job {
    pb::Job { job_type: job_type.into(), ..Default::default() }
}

/// A request for a job.
fn request(job: pb::Job) -> pb::CreateJobRequest {
    pb::CreateJobRequest { job: Some(job), ..Default::default() }
}

async fn create(server: &TestServer, job: pb::Job) -> pb::Job {
    try_create(server, job).await.unwrap().into_inner()
}

async fn try_create(server: &TestServer, job: pb::Job) -> Reply<pb::Job> {
    server.jobs().create_job(request(job)).await
}

async fn get(server: &TestServer, id: &str) -> pb::Job {
    let request = pb::GetJobRequest { id: id.into() };
    server.jobs().get_job(request).await.unwrap().into_inner()
}

/// A worker who waits for jobs of the default queue.
fn claim(worker: &str, max_jobs: i32) -> pb::ClaimJobsRequest {
    pb::ClaimJobsRequest { worker_id: worker.into(), max_jobs, wait: span(PATIENCE), ..Default::default() }
}

async fn claim_with(server: &TestServer, request: pb::ClaimJobsRequest) -> Vec<pb::ClaimedJob> {
    let response = server.job_workers().claim_jobs(request).await;
    response.unwrap().into_inner().jobs
}

/// Waits for a job.
async fn claim_one(server: &TestServer, worker: &str) -> pb::ClaimedJob {
    let mut jobs = claim_with(server, claim(worker, 1)).await;
    assert_eq!(jobs.len(), 1, "a job comes in time");
    jobs.remove(0)
}

/// Takes what there is, without waiting.
async fn claim_now(server: &TestServer, worker: &str, max_jobs: i32) -> Vec<pb::ClaimedJob> {
    let request = pb::ClaimJobsRequest { wait: None, ..claim(worker, max_jobs) };
    claim_with(server, request).await
}

fn id(claimed: &pb::ClaimedJob) -> String {
    claimed.job.as_ref().unwrap().id.clone()
}

fn completion(claimed: &pb::ClaimedJob) -> pb::JobCompletion {
    pb::JobCompletion { job_id: id(claimed), lease_id: claimed.lease_id.clone(), result: None }
}

async fn complete(server: &TestServer, claimed: &pb::ClaimedJob) -> Reply<pb::CompleteJobsResponse> {
    let request = pb::CompleteJobsRequest { completions: vec![completion(claimed)] };
    server.job_workers().complete_jobs(request).await
}

fn failure(claimed: &pb::ClaimedJob) -> pb::FailJobRequest {
    pb::FailJobRequest {
        job_id: id(claimed),
        lease_id: claimed.lease_id.clone(),
        error_message: "no".into(),
        retry_after: span(Duration::ZERO),
        ..Default::default()
    }
}

async fn fail(server: &TestServer, request: pb::FailJobRequest) -> pb::Job {
    let job = server.job_workers().fail_job(request).await;
    job.unwrap().into_inner()
}

async fn cancel(server: &TestServer, id: &str) -> pb::Job {
    let request = pb::CancelJobRequest { id: id.into(), actor: "ann".into(), reason: "not needed".into() };
    server.jobs().cancel_job(request).await.unwrap().into_inner()
}

/// Waits until a job is in this status.
async fn job_with_status(server: &TestServer, id: &str, status: pb::JobStatus) -> pb::Job {
    eventually_ok(&format!("the job becomes {status:?}"), async || {
        let job = get(server, id).await;
        if job.status() == status { Ok(job) } else { Err(format!("{job:?}")) }
    })
    .await
}
