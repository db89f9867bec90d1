//! Jobs, their settings, and their schedules.

use serde_json::json;
use watchpost::pb;

use super::{row_exists, span};
use crate::{
    columns::read::{queue_client, schedule_client},
    support::{
        TestServer,
        calls::{at, execute, mask, object, strings},
    },
};

/// A request for a job with everything that there is.
pub fn job(key: &str) -> pb::CreateJobRequest {
    let job = pb::Job {
        job_type: "export".into(),
        queue_name: Some("media".into()),
        priority: Some(3),
        payload: object(&json!({"camera": "porch"})),
        scheduled_at: at(1_772_366_400),
        max_attempts: Some(5),
        timeout: span(7_200),
        deadline: span(36_000),
        unique: Some(pb::UniqueJob { key: key.into(), states: vec![], period: span(86_400) }),
        concurrency_key: "porch".into(),
        max_rescues: Some(7),
        retry_policy: Some(pb::RetryPolicy {
            initial_delay: span(3_600),
            max_delay: span(7_200),
            multiplier: Some(1.5),
            jitter: Some(0.25),
        }),
        dead_letter: Some(false),
        ..Default::default()
    };
    pb::CreateJobRequest { job: Some(job), request_id: format!("request {key}") }
}

/// Claims a job of the queue `media`, which must be there or come.
pub async fn claim(server: &TestServer, lease_seconds: i64) -> pb::ClaimedJob {
    let request = pb::ClaimJobsRequest {
        worker_id: "worker-1".into(),
        queue_names: strings(&["media"]),
        max_jobs: 1,
        wait: span(20),
        lease_duration: span(lease_seconds),
        ..Default::default()
    };
    let claimed = server.job_workers().claim_jobs(request).await.unwrap();
    let mut jobs = claimed.into_inner().jobs;
    jobs.pop().expect("a job comes in time")
}

pub async fn progress(server: &TestServer, (job_id, lease_id): (&str, &str)) {
    let request = pb::UpdateJobProgressRequest {
        job_id: job_id.into(),
        lease_id: lease_id.into(),
        progress_percent: Some(31),
        current_step: Some("encoding".into()),
        items_processed: Some(11),
        items_total: Some(33),
    };
    let mut workers = server.job_workers();
    workers.update_job_progress(request).await.unwrap();
}

pub async fn log(server: &TestServer, (job_id, lease_id): (&str, &str)) {
    let line = pb::JobLogLine {
        message: "no space left".into(),
        level: pb::JobLogLevel::Error.into(),
        timestamp: at(1_772_366_400),
        context: object(&json!({"disk": 1})),
    };
    let request =
        pb::AppendJobLogsRequest { job_id: job_id.into(), lease_id: lease_id.into(), lines: vec![line], offset: None };
    server.job_workers().append_job_logs(request).await.unwrap();
}

pub async fn complete(server: &TestServer, (job_id, lease_id): (&str, &str)) {
    let completion =
        pb::JobCompletion { job_id: job_id.into(), lease_id: lease_id.into(), result: object(&json!({"rows": 10})) };
    let request = pb::CompleteJobsRequest { completions: vec![completion] };
    server.job_workers().complete_jobs(request).await.unwrap();
}

pub async fn fail(server: &TestServer, (job_id, lease_id): (&str, &str), retryable: bool) {
    let request = pb::FailJobRequest {
        job_id: job_id.into(),
        lease_id: lease_id.into(),
        error_message: "no space left".into(),
        error_traceback: Some("line 7".into()),
        error_code: Some("ENOSPC".into()),
        retryable: Some(retryable),
        retry_after: None,
    };
    server.job_workers().fail_job(request).await.unwrap();
}

pub async fn cancel(server: &TestServer, id: &str) {
    let request = pb::CancelJobRequest { id: id.into(), actor: "ann".into(), reason: "not needed".into() };
    server.jobs().cancel_job(request).await.unwrap();
}

/// Jobs in every status, with the settings of queues and types, and the jobs of schedules.
pub async fn fill(server: &TestServer) {
    settings(server).await;
    // Its lease ends, and the next attempt goes on.
    server.jobs().create_job(job("rescued")).await.unwrap();
    let lost = claim(server, 1).await;
    let claimed = claim(server, 3_600).await;
    assert_eq!(claimed.job.as_ref().unwrap().id, lost.job.as_ref().unwrap().id);
    let lease = |claimed: &pb::ClaimedJob| {
        let id = claimed.job.as_ref().unwrap().id.clone();
        (id, claimed.lease_id.clone())
    };
    let (id, lease_id) = lease(&claimed);
    progress(server, (&id, &lease_id)).await;
    log(server, (&id, &lease_id)).await;
    cancel(server, &id).await;

    for key in ["completed", "retried", "failed"] {
        let mut request = job(key);
        request.job.as_mut().unwrap().dead_letter = Some(true);
        server.jobs().create_job(request).await.unwrap();
        let claimed = claim(server, 3_600).await;
        let (id, lease_id) = lease(&claimed);
        match key {
            "completed" => complete(server, (&id, &lease_id)).await,
            "retried" => fail(server, (&id, &lease_id), true).await,
            _ => fail(server, (&id, &lease_id), false).await,
        }
    }
    schedules(server).await;
}

async fn settings(server: &TestServer) {
    let queue = pb::JobQueue {
        name: "night".into(),
        description: Some("At night.".into()),
        max_running: Some(5),
        max_running_per_key: Some(2),
        ..Default::default()
    };
    let request = pb::UpdateJobQueueRequest { job_queue: Some(queue), ..Default::default() };
    let mut queues = queue_client(server);
    queues.update_job_queue(request).await.unwrap();
    let request =
        pb::PauseJobQueueRequest { name: "night".into(), actor: "ann".into(), reason: "work on the disks".into() };
    queues.pause_job_queue(request).await.unwrap();
}

/// A type with everything that there is.
pub fn job_type() -> pb::JobType {
    pb::JobType {
        name: "train".into(),
        description: Some("Trains models.".into()),
        priority: Some(3),
        max_attempts: Some(9),
        max_rescues: Some(8),
        timeout: span(3_600),
        deadline: span(7_200),
        retry_initial_delay: span(2),
        retry_max_delay: span(20),
        retry_multiplier: Some(1.5),
        retry_jitter: Some(0.5),
        dead_letter: Some(false),
        ..Default::default()
    }
}

/// A schedule with everything that there is.
pub fn job_schedule(name: &str) -> pb::JobSchedule {
    pb::JobSchedule {
        name: name.into(),
        description: Some("Every night.".into()),
        enabled: Some(false),
        cron: "17 3 29 2 *".into(),
        time_zone: "Europe/Berlin".into(),
        missed_policy: pb::MissedPolicy::Skip.into(),
        job_type: "scheduled".into(),
        queue_name: "night".into(),
        priority: Some(3),
        max_attempts: Some(6),
        payload: object(&json!({"days": 30})),
        skip_if_active: true,
        ..Default::default()
    }
}

async fn schedules(server: &TestServer) {
    let mut client = schedule_client(server);
    let mut ids = Vec::new();
    for (name, cron) in [("ticking", "* * * * * *"), ("missed", "17 3 29 2 *")] {
        let schedule = pb::JobSchedule { enabled: Some(true), cron: cron.into(), ..job_schedule(name) };
        let request = pb::CreateJobScheduleRequest { job_schedule: Some(schedule) };
        let created = client.create_job_schedule(request).await.unwrap();
        ids.push(created.into_inner().id);
    }
    let missed = "UPDATE job_schedules SET next_tick_at = '2019-02-28T02:17:00+00:00' WHERE name = 'missed'";
    execute(server, missed).await;
    row_exists(server, "SELECT 1 FROM jobs WHERE tick_at IS NOT NULL").await;
    row_exists(server, "SELECT 1 FROM job_schedules WHERE missed_ticks > 0").await;
    row_exists(server, "SELECT 1 FROM job_schedules WHERE last_job_id IS NOT NULL").await;
    // The other one does not tick soon.
    let schedule = pb::JobSchedule { id: ids[0].clone(), enabled: Some(false), ..Default::default() };
    let request = pb::UpdateJobScheduleRequest {
        job_schedule: Some(schedule),
        update_mask: mask(&["enabled"]),
        expected_version_id: None,
    };
    client.update_job_schedule(request).await.unwrap();
    let later = "UPDATE job_schedules SET next_tick_at = '2032-01-02T03:04:05+00:00' WHERE NOT enabled";
    execute(server, later).await;
}
