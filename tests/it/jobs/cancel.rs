//! Cancelling is asked for and answered.

use std::time::Duration;

use tonic::Code;
use watchpost::pb::{self, JobStatus};

use super::{
    cancel, claim, claim_one, claim_with, complete, create, failure, get, id, job_with_status, span, story, wanted,
};
use crate::support::{
    TestServer,
    database::{Backend, on_both},
    reason,
};

fn acknowledgement(claimed: &pb::ClaimedJob) -> pb::AcknowledgeJobCancellationRequest {
    pb::AcknowledgeJobCancellationRequest { job_id: id(claimed), lease_id: claimed.lease_id.clone() }
}

#[on_both]
async fn a_queued_job_is_cancelled_at_once(backend: Backend) {
    let server = TestServer::start(backend).await;
    let job = create(&server, wanted("export")).await;
    let cancelled = cancel(&server, &job.id).await;
    assert_eq!(cancelled.status(), JobStatus::Cancelled);
    assert_eq!(cancelled.cancel_requested_by.as_deref(), Some("ann"));
    assert!(crate::jobs::claim_now(&server, "w", 1).await.is_empty());
    // Again, it is returned as it is.
    assert_eq!(cancel(&server, &job.id).await.version_id, cancelled.version_id);
    let retry = pb::RetryJobRequest { id: job.id.clone(), ..Default::default() };
    server.jobs().retry_job(retry).await.unwrap();
    let claimed = claim_one(&server, "w").await;
    assert_eq!(claimed.job.as_ref().unwrap().attempt_number, 1);
    complete(&server, &claimed).await.unwrap();
    let again = pb::CancelJobRequest { id: job.id, ..Default::default() };
    let error = server.jobs().cancel_job(again).await.unwrap_err();
    assert_eq!((error.code(), &*reason(&error)), (Code::FailedPrecondition, "WRONG_STATUS"));
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn a_running_job_is_cancelled_when_its_worker_acknowledges(backend: Backend) {
    let server = TestServer::start(backend).await;
    create(&server, wanted("export")).await;
    let claimed = claim_one(&server, "w").await;
    let mut workers = server.job_workers();
    let error = workers.acknowledge_job_cancellation(acknowledgement(&claimed)).await.unwrap_err();
    assert_eq!((error.code(), &*reason(&error)), (Code::FailedPrecondition, "WRONG_STATUS"));
    let asked = cancel(&server, &id(&claimed)).await;
    assert_eq!(asked.status(), JobStatus::Running);
    let lease = pb::JobLease { job_id: id(&claimed), lease_id: claimed.lease_id.clone() };
    let beat = pb::HeartbeatJobsRequest { leases: vec![lease] };
    let beat = workers.heartbeat_jobs(beat).await.unwrap().into_inner();
    assert!(beat.leases[0].cancel_requested);
    assert_eq!(beat.leases[0].cancel_reason.as_deref(), Some("not needed"));
    let error = complete(&server, &claimed).await.unwrap_err();
    assert_eq!((error.code(), &*reason(&error)), (Code::Aborted, "JOB_CANCELLED"));
    let done = workers.acknowledge_job_cancellation(acknowledgement(&claimed)).await.unwrap();
    assert_eq!(done.into_inner().status(), JobStatus::Cancelled);
    let error = complete(&server, &claimed).await.unwrap_err();
    assert_eq!((error.code(), &*reason(&error)), (Code::Aborted, "LEASE_LOST"));
    let db = server.database.connect().await;
    let path = story::path(&db, &id(&claimed)).await;
    assert_eq!(path, ["running worker", "cancelled worker"]);
    story::holds(&db).await;
}

#[on_both]
async fn a_worker_that_is_gone_need_not_acknowledge(backend: Backend) {
    let server = TestServer::start(backend).await;
    create(&server, wanted("export")).await;
    let request = pb::ClaimJobsRequest { lease_duration: span(Duration::from_secs(1)), ..claim("gone", 1) };
    let claimed = claim_with(&server, request).await.remove(0);
    cancel(&server, &id(&claimed)).await;
    let job = job_with_status(&server, &id(&claimed), JobStatus::Cancelled).await;
    assert_eq!(job.rescues, 0);
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn a_failure_answers_a_cancellation(backend: Backend) {
    let server = TestServer::start(backend).await;
    create(&server, wanted("export")).await;
    let claimed = claim_one(&server, "w").await;
    cancel(&server, &id(&claimed)).await;
    let after = crate::jobs::fail(&server, failure(&claimed)).await;
    assert_eq!((after.status(), after.failures), (JobStatus::Cancelled, 0));
    assert_eq!(get(&server, &id(&claimed)).await.status(), JobStatus::Cancelled);
    story::holds(&server.database.connect().await).await;
}
