//! Working jobs call by call.

use std::time::Duration;

use sea_orm::EntityTrait;
use serde_json::json;
use tonic::Code;
use watchpost::pb::{self, JobStatus};

use super::{
    claim, claim_now, claim_one, claim_with, complete, completion, create, get, id, job_with_status, request, span,
    story, wanted,
};
use crate::support::{
    TestServer,
    calls::object,
    database::{Backend, on_both},
    eventually, field, reason,
};

#[on_both]
async fn jobs_that_wait_at_the_start_are_dispatched(backend: Backend) {
    let server = TestServer::start(backend).await;
    let job = create(&server, wanted("export")).await;
    // The next process knows of the job by the table only.
    let server = TestServer::start_with(server.stop().await, |_| {}).await;
    assert_eq!(id(&claim_one(&server, "w").await), job.id);
    server.stop().await;
}

#[on_both]
async fn a_job_is_worked_from_the_queue_to_its_result(backend: Backend) {
    let server = TestServer::start(backend).await;
    let job = create(&server, pb::Job { payload: object(&json!({"n": 1})), ..wanted("export") }).await;
    let claimed = claim_one(&server, "worker-1").await;
    let running = claimed.job.clone().unwrap();
    assert_eq!((&running.id, running.status()), (&job.id, JobStatus::Running));
    assert_eq!((running.payload, running.worker_id.as_deref()), (job.payload, Some("worker-1")));
    assert!(claimed.attempt_deadline_at.is_some());
    assert_eq!(claimed.lease_duration.unwrap().seconds, 30);
    let request = pb::UpdateJobProgressRequest {
        job_id: job.id.clone(),
        lease_id: claimed.lease_id.clone(),
        current_step: Some("half".into()),
        items_processed: Some(5),
        items_total: Some(10),
        ..Default::default()
    };
    server.job_workers().update_job_progress(request).await.unwrap();
    let half = get(&server, &job.id).await;
    assert_eq!((half.progress_percent, half.current_step.as_deref()), (50, Some("half")));
    let done = pb::JobCompletion { result: object(&json!({"rows": 10})), ..completion(&claimed) };
    let request = pb::CompleteJobsRequest { completions: vec![done.clone()] };
    server.job_workers().complete_jobs(request).await.unwrap();
    let job = get(&server, &job.id).await;
    assert_eq!((job.status(), job.progress_percent), (JobStatus::Completed, 100));
    assert_eq!(job.result, done.result);
    let db = server.database.connect().await;
    assert_eq!(story::path(&db, &job.id).await, ["running worker", "completed worker"]);
    story::holds(&db).await;
}

#[on_both]
async fn a_stale_lease_is_refused_always(backend: Backend) {
    let server = TestServer::start(backend).await;
    create(&server, wanted("export")).await;
    let request = pb::ClaimJobsRequest { lease_duration: span(Duration::from_secs(1)), ..claim("slow", 1) };
    let stale = claim_with(&server, request).await.remove(0);
    // The lease expires, and another worker has the job.
    let current = claim_one(&server, "fast").await;
    assert_eq!(id(&current), id(&stale));
    let mut workers = server.job_workers();
    let refused = |status: tonic::Status| {
        assert_eq!((status.code(), &*reason(&status)), (Code::Aborted, "LEASE_LOST"));
    };
    refused(complete(&server, &stale).await.unwrap_err());
    refused(workers.fail_job(crate::jobs::failure(&stale)).await.unwrap_err());
    let release = pb::ReleaseJobRequest { job_id: id(&stale), lease_id: stale.lease_id.clone(), ..Default::default() };
    refused(workers.release_job(release).await.unwrap_err());
    let progress = pb::UpdateJobProgressRequest {
        job_id: id(&stale),
        lease_id: stale.lease_id.clone(),
        progress_percent: Some(1),
        ..Default::default()
    };
    refused(workers.update_job_progress(progress).await.unwrap_err());
    let logs = pb::AppendJobLogsRequest {
        job_id: id(&stale),
        lease_id: stale.lease_id.clone(),
        lines: vec![line("late")],
        offset: None,
    };
    refused(workers.append_job_logs(logs).await.unwrap_err());
    let lease = pb::JobLease { job_id: id(&stale), lease_id: stale.lease_id.clone() };
    let beat = pb::HeartbeatJobsRequest { leases: vec![lease] };
    let beat = workers.heartbeat_jobs(beat).await.unwrap().into_inner();
    assert!(beat.leases[0].lost);
    // The one that has it completes it, once.
    complete(&server, &current).await.unwrap();
    refused(complete(&server, &current).await.unwrap_err());
    let job = get(&server, &id(&stale)).await;
    assert_eq!((job.rescues, job.failures, job.log_lines), (1, 0, 0));
    let db = server.database.connect().await;
    let path = story::path(&db, &job.id).await;
    assert_eq!(path, ["running worker", "queued system", "running worker", "completed worker"]);
    story::holds(&db).await;
}

#[on_both]
async fn heartbeats_keep_a_lease(backend: Backend) {
    let server = TestServer::start(backend).await;
    for _ in 0..2 {
        create(&server, wanted("export")).await;
    }
    let request = pb::ClaimJobsRequest { lease_duration: span(Duration::from_secs(1)), ..claim("w", 2) };
    let claimed = claim_with(&server, request).await;
    let [kept, abandoned] = &claimed[..] else { panic!("not two jobs: {claimed:?}") };
    let lease = pb::JobLease { job_id: id(kept), lease_id: kept.lease_id.clone() };
    eventually("the job without heartbeats is rescued", async || {
        let beat = pb::HeartbeatJobsRequest { leases: vec![lease.clone()] };
        let beat = server.job_workers().heartbeat_jobs(beat).await.unwrap().into_inner();
        assert!(!beat.leases[0].lost);
        get(&server, &id(abandoned)).await.rescues > 0
    })
    .await;
    complete(&server, kept).await.unwrap();
    assert_eq!(get(&server, &id(kept)).await.rescues, 0);
}

#[on_both]
async fn several_are_completed_together_or_not_at_all(backend: Backend) {
    let server = TestServer::start(backend).await;
    for _ in 0..3 {
        create(&server, wanted("export")).await;
    }
    let mut claimed = claim_now(&server, "w", 3).await;
    assert_eq!(claimed.len(), 3);
    complete(&server, &claimed[1]).await.unwrap();
    let request = pb::CompleteJobsRequest { completions: claimed.iter().map(completion).collect() };
    let error = server.job_workers().complete_jobs(request).await.unwrap_err();
    assert_eq!((error.code(), &*reason(&error)), (Code::Aborted, "LEASE_LOST"));
    let details = tonic_types::StatusExt::get_error_details(&error);
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!((&*metadata["index"], &*metadata["status"]), ("1", "COMPLETED"));
    assert_eq!(get(&server, &id(&claimed[0])).await.status(), JobStatus::Running);
    claimed.remove(1);
    let mut completions: Vec<_> = claimed.iter().map(completion).collect();
    let request = pb::CompleteJobsRequest { completions: completions.clone() };
    server.job_workers().complete_jobs(request).await.unwrap();
    completions.push(completions[0].clone());
    let request = pb::CompleteJobsRequest { completions };
    let error = server.job_workers().complete_jobs(request).await.unwrap_err();
    assert_eq!(field(&error), "completions[2].job_id");
    story::holds(&server.database.connect().await).await;
}

#[on_both]
async fn a_claim_waits_for_a_job_and_not_longer(backend: Backend) {
    let server = TestServer::start(backend).await;
    assert!(claim_now(&server, "w", 1).await.is_empty());
    let request = pb::ClaimJobsRequest { wait: span(Duration::from_millis(100)), ..claim("w", 1) };
    assert!(claim_with(&server, request).await.is_empty());
    let waiting = claim_one(&server, "w");
    let (claimed, job) = tokio::join!(waiting, create(&server, wanted("export")));
    assert_eq!(id(&claimed), job.id);
}

#[on_both]
async fn priorities_types_and_queues_are_kept_apart(backend: Backend) {
    let server = TestServer::start(backend).await;
    let of = |job_type: &str, queue: &str, priority| pb::Job {
        queue_name: Some(queue.into()),
        priority: Some(priority),
        ..wanted(job_type)
    };
    let last = create(&server, of("a", "q", 4)).await.id;
    let first = create(&server, of("a", "q", 0)).await.id;
    let other_type = create(&server, of("b", "q", 0)).await.id;
    let other_queue = create(&server, of("a", "r", 0)).await.id;
    let take = |queues: &[&str], types: &[&str]| pb::ClaimJobsRequest {
        queue_names: crate::support::calls::strings(queues),
        job_types: crate::support::calls::strings(types),
        ..claim("w", 1)
    };
    let mut taken = Vec::new();
    for request in [take(&["q"], &["a"]), take(&["q"], &["a"]), take(&["q"], &[]), take(&["q", "r"], &[])] {
        taken.push(id(&claim_with(&server, request).await[0]));
    }
    assert_eq!(taken, [first, last, other_type, other_queue]);
}

#[on_both]
async fn keys_take_turns(backend: Backend) {
    let server = TestServer::start(backend).await;
    let of = |key: &str| request(pb::Job { concurrency_key: key.into(), ..wanted("export") });
    let mut requests = vec![of("busy"); 50];
    requests.extend([of("quiet"), of("quiet")]);
    let batch = pb::BatchCreateJobsRequest { requests };
    server.jobs().batch_create_jobs(batch).await.unwrap();
    let mut keys = Vec::new();
    for _ in 0..4 {
        let claimed = claim_one(&server, "w").await;
        keys.push(claimed.job.unwrap().concurrency_key);
    }
    keys.sort();
    assert_eq!(keys, ["busy", "busy", "quiet", "quiet"]);
}

#[on_both]
async fn logs_are_numbered_and_not_repeated(backend: Backend) {
    let server = TestServer::start(backend).await;
    create(&server, wanted("export")).await;
    let claimed = claim_one(&server, "w").await;
    let append = |lines: &[&str], offset| pb::AppendJobLogsRequest {
        job_id: id(&claimed),
        lease_id: claimed.lease_id.clone(),
        lines: lines.iter().map(|text| line(text)).collect(),
        offset,
    };
    let mut workers = server.job_workers();
    for (lines, offset, last) in
        [(&["a", "b"][..], Some(0), 2), (&["a", "b", "c"], Some(0), 3), (&["d"], None, 4), (&["d"], Some(3), 4)]
    {
        let response = workers.append_job_logs(append(lines, offset)).await.unwrap();
        assert_eq!(response.into_inner().last_line, last);
    }
    let error = workers.append_job_logs(append(&["x"], Some(9))).await.unwrap_err();
    assert_eq!(field(&error), "offset");
    let error = workers.append_job_logs(append(&[""], None)).await.unwrap_err();
    assert_eq!(field(&error), "lines[0].message");
    complete(&server, &claimed).await.unwrap();
    let db = server.database.connect().await;
    let lines = watchpost::entity::job_log::Entity::find().all(&db).await.unwrap();
    let mut lines: Vec<_> = lines.into_iter().map(|line| (line.line, line.message)).collect();
    lines.sort();
    let expected = ["a", "b", "c", "d"].iter().zip(1..);
    let expected: Vec<_> = expected.map(|(text, line)| (Some(line), (*text).to_string())).collect();
    assert_eq!(lines, expected);
    story::holds(&db).await;
}

#[on_both]
async fn a_release_and_a_snooze_are_no_failures(backend: Backend) {
    let server = TestServer::start(backend).await;
    let job = create(&server, pb::Job { max_attempts: Some(1), ..wanted("export") }).await;
    let claimed = claim_one(&server, "w").await;
    let release = |claimed: &pb::ClaimedJob, snooze| pb::ReleaseJobRequest {
        job_id: id(claimed),
        lease_id: claimed.lease_id.clone(),
        reason: "shutdown".into(),
        snooze,
    };
    let released = server.job_workers().release_job(release(&claimed, None)).await.unwrap();
    let released = released.into_inner();
    assert_eq!((released.status(), released.failures), (JobStatus::Queued, 0));
    let claimed = claim_one(&server, "w").await;
    let snooze = release(&claimed, span(Duration::from_secs(1)));
    let snoozed = server.job_workers().release_job(snooze).await.unwrap().into_inner();
    assert_eq!((snoozed.failures, snoozed.attempt_number), (0, 3));
    assert!(claim_now(&server, "w", 1).await.is_empty());
    let claimed = claim_one(&server, "w").await;
    complete(&server, &claimed).await.unwrap();
    job_with_status(&server, &job.id, JobStatus::Completed).await;
    let db = server.database.connect().await;
    let attempts = story::attempts(&db, &job.id).await.into_iter();
    let outcomes: Vec<_> = attempts.map(|attempt| format!("{:?}", attempt.outcome.unwrap())).collect();
    assert_eq!(outcomes, ["Released", "Snoozed", "Succeeded"]);
    story::holds(&db).await;
}

#[on_both]
async fn a_claim_gives_no_more_than_clients_take(backend: Backend) {
    let server = TestServer::start(backend).await;
    for number in 0..8 {
        // Alike, so that a database may store them in little.
        let payload = object(&json!({"n": number, "x": "x".repeat(900_000)}));
        create(&server, pb::Job { payload, ..wanted("export") }).await;
    }
    create(&server, wanted("export")).await;
    let mut numbers = Vec::new();
    while numbers.len() < 9 {
        let claimed = claim_with(&server, claim("w", 100)).await;
        assert!((1..=4).contains(&claimed.len()), "{}", claimed.len());
        for claimed in claimed {
            let payload = claimed.job.unwrap().payload;
            numbers.push(payload.map(|payload| payload.fields["n"].clone()));
        }
    }
    let given = numbers.iter().flatten().count();
    assert_eq!((given, numbers.last()), (8, Some(&None)), "in their order, each with its payload");
    story::holds(&server.database.connect().await).await;
}

fn line(text: &str) -> pb::JobLogLine {
    pb::JobLogLine { message: text.into(), ..Default::default() }
}
