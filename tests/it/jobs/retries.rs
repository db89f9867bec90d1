//! What fails is tried again, or fails for good.

use std::time::Duration;

use tonic::Code;
use watchpost::pb::{self, JobStatus};

use super::{
    claim, claim_one, claim_with, complete, create, fail, failure, get, id, job_with_status, span, story, wanted,
};
use crate::support::{
    TestServer,
    database::{Backend, on_both},
    reason,
};

fn millis(time: Option<prost_types::Timestamp>) -> i64 {
    let time = time.unwrap();
    time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000
}

#[on_both]
async fn a_failure_is_tried_again_until_attempts_are_exhausted(backend: Backend) {
    let server = TestServer::start(backend).await;
    let job = create(&server, pb::Job { max_attempts: Some(2), ..wanted("export") }).await;
    let first = claim_one(&server, "w").await;
    let after = fail(
        &server,
        pb::FailJobRequest {
            error_code: Some("EIO".into()),
            error_traceback: Some("line 1".into()),
            ..failure(&first)
        },
    )
    .await;
    assert_eq!((after.status(), after.failures, after.attempt_number), (JobStatus::Queued, 1, 2));
    assert_eq!((after.error_message.as_deref(), after.error_code.as_deref()), (Some("no"), Some("EIO")));
    let second = claim_one(&server, "w").await;
    assert_eq!(second.job.as_ref().unwrap().next_retry_at, None);
    let after = fail(&server, failure(&second)).await;
    assert_eq!((after.status(), after.failures), (JobStatus::Failed, 2));
    assert!(after.dead_at.is_some() && after.completed_at.is_some());
    // Redriven, it has all its attempts again.
    let retry = pb::RetryJobRequest { id: job.id.clone(), ..Default::default() };
    let again = server.jobs().retry_job(retry.clone()).await.unwrap().into_inner();
    assert_eq!((again.status(), again.failures, again.attempt_number), (JobStatus::Queued, 0, 3));
    assert_eq!((again.error_message, again.dead_at, again.completed_at), (None, None, None));
    let error = server.jobs().retry_job(retry).await.unwrap_err();
    assert_eq!((error.code(), &*reason(&error)), (Code::FailedPrecondition, "WRONG_STATUS"));
    let third = claim_one(&server, "w").await;
    complete(&server, &third).await.unwrap();
    let db = server.database.connect().await;
    let path = story::path(&db, &job.id).await;
    assert_eq!(
        path,
        [
            "running worker",
            "queued retry",
            "running worker",
            "failed worker",
            "queued user",
            "running worker",
            "completed worker",
        ]
    );
    story::holds(&db).await;
}

#[on_both]
async fn a_failure_that_cannot_be_helped_is_final(backend: Backend) {
    let server = TestServer::start(backend).await;
    create(&server, pb::Job { dead_letter: Some(false), ..wanted("export") }).await;
    let claimed = claim_one(&server, "w").await;
    let after = fail(&server, pb::FailJobRequest { retryable: Some(false), ..failure(&claimed) }).await;
    assert_eq!((after.status(), after.failures, after.dead_at), (JobStatus::Failed, 1, None));
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn waits_grow_up_to_their_most(backend: Backend) {
    let server = TestServer::start(backend).await;
    create(
        &server,
        pb::Job {
            max_attempts: Some(10),
            retry_policy: Some(pb::RetryPolicy {
                initial_delay: span(Duration::from_millis(100)),
                max_delay: span(Duration::from_millis(250)),
                multiplier: Some(2.0),
                jitter: Some(0.1),
            }),
            ..wanted("export")
        },
    )
    .await;
    let mut due = 0;
    for (least, most) in [(100, 110), (200, 220), (250, 275), (250, 275)] {
        let claimed = claim_one(&server, "w").await;
        let after = fail(&server, pb::FailJobRequest { retry_after: None, ..failure(&claimed) }).await;
        let begins = millis(claimed.job.as_ref().unwrap().started_at);
        assert!(begins >= due, "it is not given before");
        due = millis(after.next_retry_at);
        let wait = due - millis(after.transitioned_at);
        assert!((least..=most).contains(&wait), "{wait} ms");
        assert_eq!(after.scheduled_at, after.next_retry_at);
    }
}

#[on_both]
async fn what_is_not_tried_again_does_not_say_when(backend: Backend) {
    let server = TestServer::start(backend).await;
    let job = create(&server, wanted("export")).await;
    let claimed = claim_one(&server, "w").await;
    let after =
        fail(&server, pb::FailJobRequest { retry_after: span(Duration::from_hours(1)), ..failure(&claimed) }).await;
    assert_eq!(after.next_retry_at, after.scheduled_at);
    let cancelled = crate::jobs::cancel(&server, &job.id).await;
    assert_eq!((cancelled.next_retry_at, cancelled.attempt_number), (None, 1));
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn a_poison_job_stops_after_its_rescues(backend: Backend) {
    let server = TestServer::start(backend).await;
    let job = create(&server, pb::Job { max_rescues: Some(1), ..wanted("export") }).await;
    for _ in 0..2 {
        let request = pb::ClaimJobsRequest { lease_duration: span(Duration::from_secs(1)), ..claim("killed", 1) };
        assert_eq!(id(&claim_with(&server, request).await[0]), job.id);
    }
    let job = job_with_status(&server, &job.id, JobStatus::Failed).await;
    assert_eq!((job.rescues, job.failures), (2, 0));
    assert_eq!(job.error_code.as_deref(), Some("RESCUES_EXHAUSTED"));
    let db = server.database.connect().await;
    let path = story::path(&db, &job.id).await;
    assert_eq!(path, ["running worker", "queued system", "running worker", "failed system"]);
    story::holds(&db).await;
}

#[on_both]
async fn an_attempt_that_takes_too_long_fails(backend: Backend) {
    let server = TestServer::start(backend).await;
    let job =
        create(&server, pb::Job { timeout: span(Duration::from_secs(1)), max_attempts: Some(1), ..wanted("export") })
            .await;
    let claimed = claim_one(&server, "w").await;
    let job = job_with_status(&server, &job.id, JobStatus::Failed).await;
    assert_eq!((job.failures, job.error_code.as_deref()), (1, Some("TIMEOUT")));
    complete(&server, &claimed).await.unwrap_err();
    let db = server.database.connect().await;
    assert_eq!(story::path(&db, &job.id).await, ["running worker", "failed timeout"]);
    story::holds(&db).await;
}

#[on_both]
async fn a_job_fails_at_its_deadline_whether_it_runs_or_not(backend: Backend) {
    let server = TestServer::start(backend).await;
    let soon = pb::Job { deadline: span(Duration::from_secs(1)), ..wanted("export") };
    let running = create(&server, soon.clone()).await;
    claim_one(&server, "w").await;
    let queued = create(&server, soon).await;
    for id in [&running.id, &queued.id] {
        let job = job_with_status(&server, id, JobStatus::Failed).await;
        assert_eq!(job.error_code.as_deref(), Some("DEADLINE_EXCEEDED"));
    }
    // One that comes back has none.
    let retry = pb::RetryJobRequest { id: queued.id.clone(), ..Default::default() };
    let again = server.jobs().retry_job(retry).await.unwrap().into_inner();
    assert_eq!((again.status(), again.deadline_at), (JobStatus::Queued, None));
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn what_is_deleted_takes_its_story_along(backend: Backend) {
    let server = TestServer::start(backend).await;
    let job = create(&server, wanted("export")).await;
    let claimed = claim_one(&server, "w").await;
    let delete = pb::DeleteJobRequest { id: job.id.clone() };
    let error = server.jobs().delete_job(delete.clone()).await.unwrap_err();
    assert_eq!((error.code(), &*reason(&error)), (Code::FailedPrecondition, "WRONG_STATUS"));
    assert_eq!(get(&server, &job.id).await.status(), JobStatus::Running);
    complete(&server, &claimed).await.unwrap();
    server.jobs().delete_job(delete.clone()).await.unwrap();
    let error = server.jobs().delete_job(delete).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    story::holds(&server.database.connect().await).await;
}
