//! Working jobs on a stream.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};
use watchpost::pb::{
    self, JobStatus, job_worker_service_client::JobWorkerServiceClient, work_jobs_request::Message as WorkerMessage,
    work_jobs_response::Message as ServerMessage,
};

use super::{cancel, claim_one, complete, completion, create, get, id, job_with_status, request, span, story, wanted};
use crate::job_crash::proxy::Proxy;
use crate::support::{
    PATIENCE, TestServer, connect,
    database::{Backend, TestDatabase, on_both},
    reason,
};

/// A worker on a stream.
pub struct Worker {
    says: mpsc::Sender<pb::WorkJobsRequest>,
    told: Streaming<pb::WorkJobsResponse>,
    pub welcome: pb::WorkerWelcome,
}

pub fn hello(worker: &str, capacity: i32) -> pb::WorkerHello {
    pb::WorkerHello { worker_id: worker.into(), capacity, ..Default::default() }
}

impl Worker {
    pub async fn start(server: &TestServer, hello: pb::WorkerHello) -> Self {
        Self::start_on(server.channel.clone(), hello).await
    }

    /// A worker on a connection of its own.
    pub async fn start_on(channel: Channel, hello: pb::WorkerHello) -> Self {
        let (says, requests) = mpsc::channel(1_000);
        let first = pb::WorkJobsRequest { number: 0, message: Some(WorkerMessage::Hello(hello)) };
        says.send(first).await.unwrap();
        let told = JobWorkerServiceClient::new(channel).work_jobs(ReceiverStream::new(requests)).await;
        let mut worker = Self { says, told: told.unwrap().into_inner(), welcome: pb::WorkerWelcome::default() };
        match worker.next().await {
            ServerMessage::Welcome(welcome) => worker.welcome = welcome,
            other => panic!("no welcome: {other:?}"),
        }
        worker
    }

    pub async fn say(&self, number: i64, message: WorkerMessage) {
        let request = pb::WorkJobsRequest { number, message: Some(message) };
        self.says.send(request).await.unwrap();
    }

    pub async fn try_next(&mut self) -> Result<Option<ServerMessage>, Status> {
        let next = timeout(PATIENCE, self.told.message()).await;
        let response = next.expect("a response comes in time")?;
        Ok(response.map(|response| response.message.expect("a response says something")))
    }

    pub async fn next(&mut self) -> ServerMessage {
        self.try_next().await.unwrap().expect("the stream goes on")
    }

    /// The next response that is not about a heartbeat.
    pub async fn job(&mut self) -> pb::ClaimedJob {
        loop {
            match self.next().await {
                ServerMessage::Job(job) => return job,
                ServerMessage::ServerTime(_) | ServerMessage::Accepted(_) => {}
                other => panic!("not a job: {other:?}"),
            }
        }
    }
}

#[on_both]
async fn jobs_are_pushed_up_to_the_capacity(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut worker = Worker::start(&server, hello("w", 2)).await;
    assert_eq!(worker.welcome.lease_duration, span(Duration::from_secs(3)));
    assert_eq!(worker.welcome.heartbeat_interval, span(Duration::from_secs(1)));
    let requests = vec![request(wanted("export")); 3];
    let batch = pb::BatchCreateJobsRequest { requests };
    server.jobs().batch_create_jobs(batch).await.unwrap();
    let (first, second) = (worker.job().await, worker.job().await);
    // The third comes when there is room for it.
    worker.say(1, WorkerMessage::Heartbeat(pb::WorkerHeartbeat {})).await;
    assert!(matches!(worker.next().await, ServerMessage::ServerTime(_)));
    worker.say(7, WorkerMessage::Complete(completion(&first))).await;
    assert_eq!(worker.next().await, ServerMessage::Accepted(pb::ReportAccepted { numbers: vec![7] }));
    let third = worker.job().await;
    worker.say(8, WorkerMessage::Complete(completion(&second))).await;
    worker.say(9, WorkerMessage::Fail(crate::jobs::failure(&third))).await;
    let again = worker.job().await;
    assert_eq!(id(&again), id(&third));
    assert_eq!(again.job.as_ref().unwrap().attempt_number, 2);
    worker.say(10, WorkerMessage::Complete(completion(&again))).await;
    job_with_status(&server, &id(&again), JobStatus::Completed).await;
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn a_refused_report_does_not_end_the_stream(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut worker = Worker::start(&server, hello("w", 1)).await;
    create(&server, wanted("export")).await;
    let job = worker.job().await;
    worker
        .say(
            1,
            WorkerMessage::Progress(pb::UpdateJobProgressRequest {
                job_id: id(&job),
                lease_id: job.lease_id.clone(),
                progress_percent: Some(101),
                ..Default::default()
            }),
        )
        .await;
    let ServerMessage::Refused(refused) = worker.next().await else { panic!("not refused") };
    assert_eq!((refused.number, refused.code, &*refused.reason), (1, Code::InvalidArgument as i32, "INVALID_FIELD"));
    assert_eq!(refused.job_id, id(&job));
    let other = pb::JobCompletion { lease_id: id(&job), ..completion(&job) };
    worker.say(2, WorkerMessage::Complete(other)).await;
    let ServerMessage::Refused(refused) = worker.next().await else { panic!("not refused") };
    assert_eq!((refused.number, refused.code, &*refused.reason), (2, Code::Aborted as i32, "LEASE_LOST"));
    worker.say(3, WorkerMessage::Complete(completion(&job))).await;
    assert_eq!(worker.next().await, ServerMessage::Accepted(pb::ReportAccepted { numbers: vec![3] }));
}

#[on_both]
async fn a_worker_is_told_to_cancel_at_once(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut worker = Worker::start(&server, hello("w", 1)).await;
    let job = create(&server, wanted("export")).await;
    let claimed = worker.job().await;
    cancel(&server, &job.id).await;
    let ServerMessage::Cancel(told) = worker.next().await else { panic!("not told") };
    assert_eq!((&told.job_id, &told.lease_id), (&job.id, &claimed.lease_id));
    assert_eq!((told.reason.as_deref(), told.actor.as_deref()), (Some("not needed"), Some("ann")));
    worker.say(1, WorkerMessage::Complete(completion(&claimed))).await;
    let ServerMessage::Refused(refused) = worker.next().await else { panic!("not refused") };
    assert_eq!(refused.reason, "JOB_CANCELLED");
    worker
        .say(
            2,
            WorkerMessage::AcknowledgeCancellation(pb::AcknowledgeJobCancellationRequest {
                job_id: job.id.clone(),
                lease_id: claimed.lease_id.clone(),
            }),
        )
        .await;
    job_with_status(&server, &job.id, JobStatus::Cancelled).await;
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn a_worker_whose_stream_breaks_loses_its_jobs_to_another(backend: Backend) {
    let server = TestServer::start(backend).await;
    let proxy = Proxy::to(server.address()).await;
    let channel = connect(&format!("http://{}", proxy.address)).await;
    let mut gone = Worker::start_on(channel, hello("gone", 1)).await;
    let job = create(&server, wanted("export")).await;
    gone.job().await;
    let mut other = Worker::start(&server, hello("other", 1)).await;
    let at_once =
        pb::WorkerHello { release_on_disconnect: true, queue_names: vec!["brief".into()], ..hello("brief", 1) };
    proxy.cut();
    let claimed = other.job().await;
    assert_eq!(id(&claimed), job.id);
    assert_eq!(claimed.job.as_ref().unwrap().rescues, 1);
    other.say(1, WorkerMessage::Complete(completion(&claimed))).await;
    job_with_status(&server, &job.id, JobStatus::Completed).await;
    // One that does not come back is rescued as soon as it is gone.
    let channel = connect(&format!("http://{}", proxy.address)).await;
    let mut brief = Worker::start_on(channel, at_once).await;
    let job = create(&server, pb::Job { queue_name: Some("brief".into()), ..wanted("export") }).await;
    brief.job().await;
    let cut = std::time::Instant::now();
    proxy.cut();
    let rescued = job_with_status(&server, &job.id, JobStatus::Queued).await;
    assert_eq!(rescued.rescues, 1);
    assert!(cut.elapsed() < Duration::from_secs(2), "its lease was not waited for");
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn a_worker_that_closes_its_side_gives_its_jobs_back(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut worker = Worker::start(&server, hello("w", 2)).await;
    let first = create(&server, wanted("export")).await;
    let second = create(&server, wanted("export")).await;
    let done = worker.job().await;
    worker.job().await;
    worker.say(1, WorkerMessage::Complete(completion(&done))).await;
    let Worker { says, mut told, .. } = worker;
    drop(says);
    let mut accepted = false;
    while let Some(response) = told.message().await.unwrap() {
        accepted |= matches!(response.message, Some(ServerMessage::Accepted(_)));
    }
    assert!(accepted, "what was reported is answered");
    let (first, second) = (get(&server, &first.id).await, get(&server, &second.id).await);
    let mut states = [(first.status(), first.rescues), (second.status(), second.rescues)];
    states.sort();
    assert_eq!(states, [(JobStatus::Queued, 0), (JobStatus::Completed, 0)]);
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn leases_survive_a_restart_of_the_server(backend: Backend) {
    let server = TestServer::start_with(TestDatabase::migrated(backend).await, |_| {}).await;
    let mut worker = Worker::start(&server, hello("w", 1)).await;
    let job = create(&server, wanted("export")).await;
    let claimed = worker.job().await;
    let stopping = tokio::spawn(server.stop());
    assert!(matches!(worker.next().await, ServerMessage::Draining(_)));
    let ended = worker.try_next().await.unwrap_err();
    assert_eq!((ended.code(), &*reason(&ended)), (Code::Unavailable, "SHUTTING_DOWN"));
    let server = TestServer::start_with(stopping.await.unwrap(), |_| {}).await;
    let held = |lease_id: &str| pb::JobLease { job_id: job.id.clone(), lease_id: lease_id.into() };
    let mut worker =
        Worker::start(&server, pb::WorkerHello { held: vec![held(&claimed.lease_id), held(&job.id)], ..hello("w", 1) })
            .await;
    let lost: Vec<_> = worker.welcome.held.iter().map(|lease| lease.lost).collect();
    assert_eq!(lost, [false, true]);
    // It is at its capacity with the job that it brought.
    let second = create(&server, wanted("export")).await;
    worker.say(1, WorkerMessage::Complete(completion(&claimed))).await;
    assert_eq!(worker.next().await, ServerMessage::Accepted(pb::ReportAccepted { numbers: vec![1] }));
    assert_eq!(id(&worker.job().await), second.id);
    assert_eq!(get(&server, &job.id).await.rescues, 0);
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn a_worker_says_hello_first(backend: Backend) {
    let server = TestServer::start(backend).await;
    let beat = pb::WorkJobsRequest { number: 0, message: Some(WorkerMessage::Heartbeat(pb::WorkerHeartbeat {})) };
    let requests = tokio_stream::iter([beat]);
    let mut told = server.job_workers().work_jobs(requests).await.unwrap().into_inner();
    let error = told.message().await.unwrap_err();
    assert_eq!((error.code(), crate::support::field(&error)), (Code::InvalidArgument, "hello".into()));
}

#[on_both]
async fn a_worker_that_gets_a_job_again_is_told_that_it_lost_it(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut worker = Worker::start(&server, hello("w", 1)).await;
    create(
        &server,
        pb::Job {
            timeout: span(Duration::from_secs(1)),
            retry_policy: Some(pb::RetryPolicy { initial_delay: span(Duration::ZERO), ..Default::default() }),
            ..wanted("export")
        },
    )
    .await;
    let first = worker.job().await;
    let ServerMessage::LeaseLost(lost) = worker.next().await else { panic!("not told") };
    assert_eq!(lost.lease_id, first.lease_id);
    let second = worker.job().await;
    assert_eq!(id(&second), id(&first));
    worker.say(1, WorkerMessage::Complete(completion(&second))).await;
    job_with_status(&server, &id(&first), JobStatus::Completed).await;
    // Its place is free again.
    create(&server, wanted("export")).await;
    worker.job().await;
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn a_worker_that_took_too_long_is_told_to_stop(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut worker = Worker::start(&server, hello("w", 1)).await;
    let job =
        create(&server, pb::Job { timeout: span(Duration::from_secs(1)), max_attempts: Some(1), ..wanted("export") })
            .await;
    let claimed = worker.job().await;
    let ServerMessage::LeaseLost(lost) = worker.next().await else { panic!("not told") };
    assert_eq!((lost.job_id, lost.lease_id), (job.id, claimed.lease_id));
    // And has room for another one.
    create(&server, wanted("export")).await;
    worker.job().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_on_one_database_share_a_queue() {
    let first = TestServer::start(Backend::Postgres).await;
    let second = crate::support::start(first.database.url(), |_| {}).await;
    let channel = crate::support::connect(&format!("http://{}", second.address)).await;
    let mut there = pb::job_worker_service_client::JobWorkerServiceClient::new(channel);
    // A job that is queued on one is given on the other.
    let waiting = there.claim_jobs(crate::jobs::claim("there", 1));
    let (claimed, job) = tokio::join!(waiting, create(&first, wanted("export")));
    let claimed = claimed.unwrap().into_inner().jobs.remove(0);
    assert_eq!(id(&claimed), job.id);
    complete(&first, &claimed).await.unwrap();
    // And a worker on one is told of what is asked for on the other.
    let mut worker = Worker::start(&first, hello("here", 1)).await;
    let job = create(&first, wanted("export")).await;
    worker.job().await;
    let channel = crate::support::connect(&format!("http://{}", second.address)).await;
    let mut jobs = pb::job_service_client::JobServiceClient::new(channel);
    let request = pb::CancelJobRequest { id: job.id.clone(), ..Default::default() };
    jobs.cancel_job(request).await.unwrap();
    assert!(matches!(worker.next().await, ServerMessage::Cancel(_)));
    let waited = claim_one(&first, "w");
    assert!(timeout(Duration::from_millis(200), waited).await.is_err());
    story::holds(&first.database.connect().await).await;
    drop(worker);
    second.stop().await;
}
