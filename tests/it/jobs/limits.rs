//! Paused queues, and how many jobs run at a time.

use watchpost::pb::{self, JobStatus, job_queue_service_client::JobQueueServiceClient};

use super::{claim_now, claim_one, complete, create, job_with_status, request, story, wanted};
use crate::support::{
    TestServer,
    calls::mask,
    database::{Backend, on_both},
};

/// Sets a limit of the default queue.
async fn limit(server: &TestServer, field: &str, change: impl FnOnce(&mut pb::JobQueue)) {
    let mut queue = pb::JobQueue { name: "default".into(), ..Default::default() };
    change(&mut queue);
    let request =
        pb::UpdateJobQueueRequest { job_queue: Some(queue), update_mask: mask(&[field]), ..Default::default() };
    let mut queues = JobQueueServiceClient::new(server.channel.clone());
    queues.update_job_queue(request).await.unwrap();
}

#[on_both]
async fn no_more_run_at_a_time_than_a_queue_allows(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    limit(&server, "max_running", |queue| queue.max_running = Some(2)).await;
    let requests = vec![request(wanted("export")); 5];
    let batch = pb::BatchCreateJobsRequest { requests };
    server.jobs().batch_create_jobs(batch).await.unwrap();
    let claimed = claim_now(&server, "w", 5).await;
    assert_eq!(claimed.len(), 2);
    // Another one begins as soon as one has ended.
    let waiting = claim_one(&server, "v");
    let ending = complete(&server, &claimed[0]);
    let (third, ended) = tokio::join!(waiting, ending);
    ended.unwrap();
    complete(&server, &claimed[1]).await.unwrap();
    complete(&server, &third).await.unwrap();
    assert_eq!(claim_now(&server, "w", 5).await.len(), 2);
    story::holds(&db).await;
}

#[on_both]
async fn no_more_of_a_key_run_at_a_time_than_a_queue_allows(backend: Backend) {
    let server = TestServer::start(backend).await;
    limit(&server, "max_running_per_key", |queue| queue.max_running_per_key = Some(1)).await;
    let of = |key: &str| request(pb::Job { concurrency_key: key.into(), ..wanted("export") });
    let requests = vec![of("a"), of("a"), of("b"), of("b"), of(""), of("")];
    let batch = pb::BatchCreateJobsRequest { requests };
    server.jobs().batch_create_jobs(batch).await.unwrap();
    let mut claimed = claim_now(&server, "w", 10).await;
    claimed.extend(claim_now(&server, "w", 10).await);
    let mut keys: Vec<_> = claimed.into_iter().map(|job| job.job.unwrap().concurrency_key).collect();
    keys.sort();
    assert_eq!(keys, ["", "", "a", "b"]);
}

#[on_both]
async fn nothing_of_a_paused_queue_is_given(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut queues = JobQueueServiceClient::new(server.channel.clone());
    let pause = pb::PauseJobQueueRequest { name: "default".into(), ..Default::default() };
    queues.pause_job_queue(pause).await.unwrap();
    let job = create(&server, wanted("export")).await;
    assert!(claim_now(&server, "w", 5).await.is_empty());
    job_with_status(&server, &job.id, JobStatus::Queued).await;
    // It is as soon as the queue goes on.
    let waiting = claim_one(&server, "w");
    let resume = pb::ResumeJobQueueRequest { name: "default".into() };
    let (claimed, resumed) = tokio::join!(waiting, queues.resume_job_queue(resume));
    resumed.unwrap();
    assert_eq!(crate::jobs::id(&claimed), job.id);
}
