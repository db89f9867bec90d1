//! Putting jobs into their queues.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use tonic::Code;
use watchpost::pb::{self, BatchCreateJobsOutcome as Outcome, JobStatus, watch_response::Update};

use super::{cancel, claim_one, complete, create, get, request, span, story, try_create, wanted};
use crate::support::{
    TestServer,
    calls::object,
    database::{Backend, on_both},
    field, in_seconds, reason, topics,
};

/// Makes a request a bad one.
type Change = fn(&mut pb::Job);

fn unique(key: &str) -> pb::Job {
    pb::Job { unique: Some(pb::UniqueJob { key: key.into(), ..Default::default() }), ..wanted("export") }
}

#[on_both]
async fn a_job_is_made_as_it_was_wanted(backend: Backend) {
    let server = TestServer::start(backend).await;
    let output_only = pb::Job {
        id: "x".into(),
        status: JobStatus::Completed.into(),
        progress_percent: 50,
        result: object(&json!({"a": 1})),
        attempt_number: 9,
        failures: 9,
        worker_id: Some("w".into()),
        unique_key: Some("k".into()),
        request_id: Some("other".into()),
        version_id: 9,
        ..Default::default()
    };
    let wanted_job = pb::Job {
        job_type: "export".into(),
        queue_name: Some("exports".into()),
        priority: Some(0),
        payload: object(&json!({"camera": "porch"})),
        max_attempts: Some(7),
        timeout: span(Duration::from_secs(5)),
        deadline: span(Duration::from_mins(1)),
        concurrency_key: "porch".into(),
        max_rescues: Some(0),
        dead_letter: Some(false),
        ..output_only
    };
    let request = pb::CreateJobRequest { job: Some(wanted_job.clone()), request_id: "r".into() };
    let made = server.jobs().create_job(request.clone()).await.unwrap().into_inner();
    // What is ignored makes no other request.
    let again = pb::Job { version_id: 1, ..wanted_job.clone() };
    let again = pb::CreateJobRequest { job: Some(again), ..request };
    assert_eq!(server.jobs().create_job(again).await.unwrap().into_inner(), made);
    assert_eq!((made.progress_percent, made.failures, made.version_id), (0, 0, 1));
    assert_eq!((&made.result, &made.worker_id, &made.unique_key), (&None, &None, &None));
    assert_eq!(made.request_id.as_deref(), Some("r"));
    assert_eq!(made.status(), JobStatus::Queued);
    assert_eq!((made.priority, made.max_attempts, made.max_rescues), (Some(0), Some(7), Some(0)));
    assert_eq!((made.timeout, made.attempt_number), (span(Duration::from_secs(5)), 1));
    assert_eq!(made.payload, wanted_job.payload);
    assert_eq!(made.scheduled_at, made.created_at);
    assert_eq!(made.dead_letter, Some(false));
    let read = get(&server, &made.id).await;
    assert_eq!(pb::Job { timing: None, ..read }, made);
    // What is left out is as the type says.
    let made = create(&server, wanted("backup")).await;
    assert_eq!((made.priority, made.max_attempts, made.max_rescues), (Some(2), Some(3), Some(3)));
    assert_eq!(made.timeout, span(Duration::from_hours(2)));
    assert_eq!((made.queue_name.as_deref(), made.dead_letter), (Some("default"), Some(true)));
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn bad_jobs_are_refused_by_field_and_none_is_made(backend: Backend) {
    let server = TestServer::start(backend).await;
    let cases: [(&str, Change); 18] = [
        ("job_type", |job| job.job_type.clear()),
        ("job_type", |job| job.job_type = "x".repeat(51)),
        ("queue_name", |job| job.queue_name = Some(" ".into())),
        ("priority", |job| job.priority = Some(5)),
        ("max_attempts", |job| job.max_attempts = Some(0)),
        ("max_rescues", |job| job.max_rescues = Some(-1)),
        ("timeout", |job| job.timeout = span(Duration::from_millis(999))),
        ("timeout", |job| job.timeout = span(Duration::from_nanos(1_000_999_999))),
        ("timeout", |job| job.timeout = Some(prost_types::Duration { seconds: 2, nanos: -1 })),
        ("deadline", |job| job.deadline = span(Duration::from_hours(367 * 24))),
        ("unique.key", |job| job.unique = Some(pb::UniqueJob::default())),
        ("unique.states[0]", |job| job.unique = Some(pb::UniqueJob { key: "k".into(), states: vec![9], period: None })),
        ("unique.states", |job| {
            job.unique = Some(pb::UniqueJob { key: "k".into(), states: vec![JobStatus::Running.into()], period: None });
        }),
        ("retry_policy.multiplier", |job| {
            job.retry_policy = Some(pb::RetryPolicy { multiplier: Some(f64::NAN), ..Default::default() });
        }),
        ("retry_policy.initial_delay", |job| {
            job.retry_policy =
                Some(pb::RetryPolicy { initial_delay: span(Duration::from_millis(86_400_001)), ..Default::default() });
        }),
        ("retry_policy.max_delay", |job| {
            job.retry_policy =
                Some(pb::RetryPolicy { max_delay: span(Duration::from_micros(1)), ..Default::default() });
        }),
        ("payload", |job| job.payload = object(&json!({"x": "y".repeat(1 << 20)}))),
        ("concurrency_key", |job| job.concurrency_key = "a\0".into()),
    ];
    for (name, change) in cases {
        let mut job = wanted("export");
        change(&mut job);
        let error = try_create(&server, job.clone()).await.unwrap_err();
        assert_eq!((error.code(), field(&error)), (Code::InvalidArgument, format!("job.{name}")));
        let requests = vec![request(wanted("export")), request(job)];
        let batch = pb::BatchCreateJobsRequest { requests };
        let error = server.jobs().batch_create_jobs(batch).await.unwrap_err();
        assert_eq!(field(&error), format!("requests[1].job.{name}"));
    }
    let error = server.jobs().create_job(pb::CreateJobRequest::default()).await.unwrap_err();
    assert_eq!((error.code(), field(&error)), (Code::InvalidArgument, "job".into()));
    let empty = pb::BatchCreateJobsRequest::default();
    let error = server.jobs().batch_create_jobs(empty).await.unwrap_err();
    assert_eq!(field(&error), "requests");
    assert!(crate::jobs::claim_now(&server, "w", 10).await.is_empty());
}

#[on_both]
async fn a_repeated_request_makes_no_second_job(backend: Backend) {
    let server = TestServer::start(backend).await;
    let once = |job| pb::CreateJobRequest { job: Some(job), request_id: "once".into() };
    let first = server.jobs().create_job(once(wanted("export"))).await.unwrap().into_inner();
    let claimed = claim_one(&server, "w").await;
    complete(&server, &claimed).await.unwrap();
    let again = server.jobs().create_job(once(wanted("export"))).await.unwrap().into_inner();
    assert_eq!((again.id.clone(), again.status()), (first.id.clone(), JobStatus::Completed));
    let other = once(pb::Job { priority: Some(1), ..wanted("export") });
    let error = server.jobs().create_job(other.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert_eq!(reason(&error), "IDEMPOTENCY_KEY_REUSED");
    let requests = vec![once(wanted("export")), request(wanted("export")), other];
    let batch = pb::BatchCreateJobsRequest { requests };
    let response = server.jobs().batch_create_jobs(batch).await.unwrap().into_inner();
    let outcomes: Vec<_> = response.results.iter().map(pb::BatchCreateJobsResult::outcome).collect();
    let expected = [Outcome::Existed, Outcome::Created, Outcome::RequestIdReused];
    assert_eq!((outcomes.as_slice(), response.created), (&expected[..], 1));
    assert_eq!(response.results[0].job_id, first.id);
}

#[on_both]
async fn a_large_batch_lets_others_write_in_between(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut watch = server.watch(topics(&[pb::Topic::Jobs])).await;
    let mut requests = vec![request(wanted("export")); 2_500];
    requests[0] = request(unique("porch"));
    requests[2_400] = request(unique("porch"));
    requests[100].request_id = "once".into();
    requests[2_300].request_id = "once".into();
    let batch = pb::BatchCreateJobsRequest { requests };
    let response = server.jobs().batch_create_jobs(batch).await.unwrap().into_inner();
    assert_eq!((response.results.len(), response.created), (2_500, 2_498));
    // What an earlier transaction made stands in the way of a later one.
    for (at, first, outcome) in [(2_400, 0, Outcome::UniqueKeyHeld), (2_300, 100, Outcome::Existed)] {
        let result = &response.results[at];
        assert_eq!(result.outcome(), outcome);
        assert_eq!(result.job_id, response.results[first].job_id);
    }
    let (mut told, mut commits) = (Vec::new(), BTreeSet::new());
    while told.len() < 2_498 {
        let response = watch.next().await;
        if let Some(Update::JobChanges(changes)) = response.update {
            told.extend(changes.changes.into_iter().filter_map(|change| change.job).map(|job| job.id));
            commits.insert(response.commit);
        }
    }
    assert_eq!(commits.len(), 3);
    let made = response.results.into_iter().filter(|result| result.outcome() == Outcome::Created);
    assert_eq!(told, made.map(|result| result.job_id).collect::<Vec<_>>());
}

#[on_both]
async fn the_job_that_holds_a_unique_key_is_told(backend: Backend) {
    let server = TestServer::start(backend).await;
    let first = create(&server, unique("porch")).await;
    let error = try_create(&server, unique("porch")).await.unwrap_err();
    assert_eq!((error.code(), field(&error)), (Code::AlreadyExists, "job.unique.key".into()));
    let details = tonic_types::StatusExt::get_error_details(&error);
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!((&metadata["job_id"], &*metadata["status"]), (&first.id, "QUEUED"));
    // Other keys and other types are free.
    create(&server, unique("yard")).await;
    create(&server, pb::Job { job_type: "backup".into(), ..unique("porch") }).await;
    let batch =
        pb::BatchCreateJobsRequest { requests: [unique("a"), unique("a"), unique("porch")].map(request).to_vec() };
    let response = server.jobs().batch_create_jobs(batch).await.unwrap().into_inner();
    let outcomes: Vec<_> = response.results.iter().map(pb::BatchCreateJobsResult::outcome).collect();
    let held = Outcome::UniqueKeyHeld;
    assert_eq!(outcomes, [Outcome::Created, held, held]);
    assert_eq!(response.results[1].job_id, response.results[0].job_id);
    assert_eq!(response.results[2].job_id, first.id);
    // The key is free when the job is in none of its states.
    cancel(&server, &first.id).await;
    let second = create(&server, unique("porch")).await;
    // And the first one cannot come back meanwhile.
    let retry = pb::RetryJobRequest { id: first.id.clone(), ..Default::default() };
    let error = server.jobs().retry_job(retry.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    cancel(&server, &second.id).await;
    server.jobs().retry_job(retry).await.unwrap();
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn a_unique_key_holds_for_its_period_or_states(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut hourly = unique("hourly");
    hourly.unique.as_mut().unwrap().period = span(Duration::from_hours(24));
    create(&server, hourly.clone()).await;
    let claimed = claim_one(&server, "w").await;
    complete(&server, &claimed).await.unwrap();
    try_create(&server, hourly).await.unwrap_err();
    let mut queued = unique("queued");
    queued.unique.as_mut().unwrap().states = vec![JobStatus::Queued.into()];
    create(&server, queued.clone()).await;
    try_create(&server, queued.clone()).await.unwrap_err();
    let running = claim_one(&server, "w").await;
    let second = create(&server, queued.clone()).await;
    // One that is to be tried again while another is queued goes on without its key.
    let failed = crate::jobs::fail(&server, crate::jobs::failure(&running)).await;
    assert_eq!(failed.status(), JobStatus::Queued);
    assert!(failed.unique_states.is_empty());
    assert_eq!(get(&server, &second.id).await.unique_states.len(), 1);
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn many_who_want_one_unique_job_get_one(backend: Backend) {
    let server = TestServer::start(backend).await;
    let tries = (0..20).map(|_| {
        let mut jobs = server.jobs();
        async move { jobs.create_job(request(unique("one"))).await.is_ok() }
    });
    let made = futures_util::future::join_all(tries).await;
    assert_eq!(made.iter().filter(|made| **made).count(), 1);
}

#[on_both]
async fn a_job_is_not_given_before_its_time(backend: Backend) {
    let server = TestServer::start(backend).await;
    let later = pb::Job { scheduled_at: in_seconds(3_600), ..wanted("export") };
    create(&server, later).await;
    let soon = pb::Job { scheduled_at: in_seconds(2), ..wanted("export") };
    let soon = create(&server, soon).await;
    assert!(crate::jobs::claim_now(&server, "w", 10).await.is_empty());
    let claimed = claim_one(&server, "w").await;
    assert_eq!(crate::jobs::id(&claimed), soon.id);
    let job = claimed.job.unwrap();
    assert!(job.started_at.unwrap().seconds >= soon.scheduled_at.unwrap().seconds);
}

#[tokio::test]
async fn ten_thousand_jobs_are_made_in_one_call() {
    let server = TestServer::start(Backend::Postgres).await;
    let requests = vec![request(wanted("export")); 10_000];
    let batch = pb::BatchCreateJobsRequest { requests };
    let response = server.jobs().batch_create_jobs(batch.clone()).await.unwrap();
    assert_eq!(response.into_inner().created, 10_000);
    let mut requests = batch.requests;
    requests.push(request(wanted("export")));
    let batch = pb::BatchCreateJobsRequest { requests };
    let error = server.jobs().batch_create_jobs(batch).await.unwrap_err();
    assert_eq!(field(&error), "requests");
}
