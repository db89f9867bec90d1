//! Many jobs are cancelled, retried and deleted by a filter.

use tonic::Code;
use watchpost::pb::{self, JobStatus};

use super::{claim_one, complete, create, fail, failure, get, id, request, story, wanted};
use crate::support::{
    TestServer,
    database::{Backend, on_both},
    field,
};

fn of_type(job_type: &str) -> pb::JobFilter {
    pb::JobFilter { job_types: vec![job_type.into()], ..Default::default() }
}

fn left(response: &pb::MoveJobsResponse) -> Vec<(JobStatus, i64)> {
    let left = response.not_moved.iter();
    left.map(|count| (count.status(), count.jobs)).collect()
}

#[on_both]
async fn jobs_that_match_are_cancelled_and_others_left_alone(backend: Backend) {
    let server = TestServer::start(backend).await;
    create(&server, wanted("export")).await;
    let done = claim_one(&server, "w").await;
    complete(&server, &done).await.unwrap();
    create(&server, wanted("export")).await;
    let running = claim_one(&server, "w").await;
    let requests = vec![request(wanted("export")); 500];
    let batch = pb::BatchCreateJobsRequest { requests };
    server.jobs().batch_create_jobs(batch).await.unwrap();
    let other = create(&server, wanted("backup")).await;
    let request = pb::CancelJobsRequest { filter: Some(of_type("export")), dry_run: true, ..Default::default() };
    let dry = server.jobs().cancel_jobs(request.clone()).await.unwrap().into_inner();
    assert_eq!((dry.matched, dry.moved, dry.requested), (502, 501, 1));
    assert_eq!(left(&dry), [(JobStatus::Completed, 1)]);
    assert_eq!(get(&server, &id(&running)).await.cancel_requested_at, None);
    let request = pb::CancelJobsRequest { dry_run: false, ..request };
    let done = server.jobs().cancel_jobs(request).await.unwrap().into_inner();
    assert_eq!(done, dry);
    assert_eq!(get(&server, &other.id).await.status(), JobStatus::Queued);
    assert!(get(&server, &id(&running)).await.cancel_requested_at.is_some());
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn dead_letters_are_redriven_by_filter(backend: Backend) {
    let server = TestServer::start(backend).await;
    for key in ["a", "b"] {
        let unique = pb::UniqueJob { key: key.into(), ..Default::default() };
        create(&server, pb::Job { unique: Some(unique), ..wanted("export") }).await;
        let claimed = claim_one(&server, "w").await;
        let failed = fail(&server, pb::FailJobRequest { retryable: Some(false), ..failure(&claimed) }).await;
        assert!(failed.dead_at.is_some());
    }
    // Another one has the key of the second.
    let unique = pb::UniqueJob { key: "b".into(), ..Default::default() };
    create(&server, pb::Job { unique: Some(unique), ..wanted("export") }).await;
    let request = pb::RetryJobsRequest {
        filter: Some(pb::JobFilter { dead: Some(true), ..Default::default() }),
        ..Default::default()
    };
    let done = server.jobs().retry_jobs(request).await.unwrap().into_inner();
    assert_eq!((done.matched, done.moved, done.unique_key_held), (2, 1, 1));
    assert_eq!(crate::jobs::claim_now(&server, "w", 9).await.len(), 2);
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn jobs_that_do_not_run_are_deleted_with_their_children(backend: Backend) {
    let server = TestServer::start(backend).await;
    for _ in 0..2 {
        create(&server, wanted("export")).await;
    }
    let running = claim_one(&server, "w").await;
    let all = |all| pb::DeleteJobsRequest { all, ..Default::default() };
    let error = server.jobs().delete_jobs(all(false)).await.unwrap_err();
    assert_eq!((error.code(), field(&error)), (Code::InvalidArgument, "filter".into()));
    let both = pb::DeleteJobsRequest { filter: Some(of_type("export")), ..all(true) };
    let error = server.jobs().delete_jobs(both).await.unwrap_err();
    assert_eq!(field(&error), "all");
    let done = server.jobs().delete_jobs(all(true)).await.unwrap().into_inner();
    assert_eq!((done.matched, done.moved), (2, 1));
    assert_eq!(left(&done), [(JobStatus::Running, 1)]);
    complete(&server, &running).await.unwrap();
    server.jobs().delete_jobs(all(true)).await.unwrap();
    let jobs = server.jobs().list_jobs(pb::ListJobsRequest::default()).await.unwrap();
    assert!(jobs.into_inner().jobs.is_empty());
    story::holds(&server.database.connect().await).await;
}
