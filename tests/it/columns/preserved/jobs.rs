//! What happens to jobs.

use tonic::Response;
use watchpost::pb;

use super::Observed;
use crate::{
    columns::{
        filled::{self, row_exists},
        stored::Stored,
    },
    support::{
        TestServer,
        database::{Backend, on_both},
    },
};

const LATER: &str = "'2031-05-06T07:08:09+00:00'";
const BEFORE: &str = "'2025-05-06T07:08:09+00:00'";

const LEASE: &str = "018f2f5e7a007000800000000000000c";

/// What every change of status sets.
const STATUS: &[&str] = &["status", "version_id", "transitioned_at"];
/// What the end of an attempt sets.
const LEASE_END: &[&str] = &["lease_id", "lease_expires_at", "attempt_deadline_at"];
const PROGRESS: &[&str] = &["progress_percent", "current_step", "items_processed", "items_total", "progress_at"];
const ERROR: &[&str] = &["error_message", "error_traceback", "error_code"];
const CANCELLATION: &[&str] = &["cancel_requested_at", "cancel_requested_by", "cancel_reason"];

/// A job, and the lease under which it runs.
struct Rig<'a> {
    server: &'a TestServer,
    id: String,
    lease: String,
    row: Observed<'a>,
}

impl Rig<'_> {
    /// Gives the job this status, with values in all columns that change.
    async fn begin(&self, status: &str, more: &[(&str, &str)]) {
        let status = format!("'{status}'");
        let lease = match self.row.backend {
            Backend::Sqlite => format!("x'{LEASE}'"),
            Backend::Postgres => format!("'{LEASE}'"),
        };
        let mut values = vec![
            ("status", status.as_str()),
            ("created_at", "'2025-01-01T00:00:00+00:00'"),
            ("started_at", BEFORE),
            ("completed_at", BEFORE),
            ("transitioned_at", BEFORE),
            ("scheduled_at", BEFORE),
            ("heartbeat_at", BEFORE),
            ("progress_at", BEFORE),
            ("lease_id", lease.as_str()),
            ("lease_ms", "61001"),
            ("worker_id", "'worker-0'"),
            ("lease_expires_at", LATER),
            ("attempt_deadline_at", LATER),
            ("deadline_at", LATER),
            ("next_retry_at", LATER),
            ("dead_at", LATER),
            ("cancel_requested_at", "NULL"),
            ("cancel_requested_by", "NULL"),
            ("cancel_reason", "NULL"),
            // Only a job that is completed has a result.
            ("result", "NULL"),
            ("progress_percent", "7"),
            ("current_step", "'seventh'"),
            ("items_processed", "7"),
            ("items_total", "77"),
            ("failures", "1"),
            ("rescues", "1"),
            ("error_message", "'old'"),
            ("error_traceback", "'old'"),
            ("error_code", "'OLD'"),
            ("attempt_number", "4"),
        ];
        values.retain(|(column, _)| more.iter().all(|(other, _)| other != column));
        values.extend(more);
        self.row.set(&values).await;
    }

    async fn run(&mut self, operation: &str, columns: &[&[&str]], running: impl Future) {
        self.row.run(operation, &columns.concat(), running).await;
    }

    /// Waits until the server has given the job another status by itself.
    async fn becomes(&self, status: &str) {
        row_exists(self.server, &format!("SELECT 1 FROM jobs WHERE status = '{status}'")).await;
    }
}

async fn claimed_and_worked(job: &mut Rig<'_>) {
    let server = job.server;
    let (id, lease) = (job.id.clone(), job.lease.clone());
    let held = (id.as_str(), lease.as_str());
    job.begin("queued", &[]).await;
    let claim: &[&str] = &[
        "lease_id",
        "lease_expires_at",
        "heartbeat_at",
        "attempt_deadline_at",
        "started_at",
        "next_retry_at",
        "worker_id",
        "lease_ms",
    ];
    job.run("ClaimJobs", &[STATUS, claim], filled::claim(server, 3_600)).await;

    let heard: &[&str] = &["lease_expires_at", "heartbeat_at"];
    job.begin("running", &[]).await;
    let leases = vec![pb::JobLease { job_id: id.clone(), lease_id: lease.clone() }];
    let mut workers = server.job_workers();
    let beat = workers.heartbeat_jobs(pb::HeartbeatJobsRequest { leases });
    job.run("HeartbeatJobs", &[heard], beat).await;
    job.begin("running", &[]).await;
    let progress = filled::progress(server, held);
    job.run("UpdateJobProgress", &[heard, PROGRESS], progress).await;
    job.begin("running", &[]).await;
    let log = filled::log(server, held);
    job.run("AppendJobLogs", &[heard, &["log_lines"]], log).await;

    let done: &[&str] = &["heartbeat_at", "completed_at", "progress_percent", "result"];
    job.begin("running", &[("failures", "0"), ("rescues", "0")]).await;
    let complete = filled::complete(server, held);
    job.run("CompleteJobs", &[STATUS, LEASE_END, done], complete).await;
    job.begin("running", &[]).await;
    let complete = filled::complete(server, held);
    let troubled = &[STATUS, LEASE_END, done, ERROR, &["next_retry_at"]];
    job.run("CompleteJobs after failures", troubled, complete).await;
}

/// What a job is given that is queued once more.
const AGAIN: &[&str] = &["attempt_number", "next_retry_at"];

async fn failed(job: &mut Rig<'_>) {
    let server = job.server;
    let (id, lease) = (job.id.clone(), job.lease.clone());
    let held = (id.as_str(), lease.as_str());
    job.begin("running", &[]).await;
    let fail = filled::fail(server, held, true);
    let own: &[&str] = &["heartbeat_at", "failures", "scheduled_at"];
    job.run("FailJob to be tried again", &[STATUS, LEASE_END, ERROR, PROGRESS, AGAIN, own], fail).await;
    job.begin("running", &[]).await;
    let fail = filled::fail(server, held, false);
    let own: &[&str] = &["heartbeat_at", "failures", "completed_at", "dead_at", "next_retry_at"];
    job.run("FailJob for good", &[STATUS, LEASE_END, ERROR, own], fail).await;

    job.begin("running", &[]).await;
    let request = pb::ReleaseJobRequest { job_id: id, lease_id: lease, reason: "drained".into(), snooze: None };
    let mut workers = server.job_workers();
    let release = workers.release_job(request);
    let own: &[&str] = &["heartbeat_at"];
    job.run("ReleaseJob", &[STATUS, LEASE_END, PROGRESS, AGAIN, own], release).await;

    job.begin("running", &[("lease_expires_at", BEFORE)]).await;
    let rescued = row_exists(server, "SELECT 1 FROM jobs WHERE status = 'queued'");
    let own: &[&str] = &["rescues", "scheduled_at"];
    job.run("a lease that expires", &[STATUS, LEASE_END, PROGRESS, AGAIN, own], rescued).await;
    job.begin("running", &[("attempt_deadline_at", BEFORE)]).await;
    let late = row_exists(server, "SELECT 1 FROM jobs WHERE status = 'queued'");
    let own: &[&str] = &["failures", "scheduled_at"];
    job.run("an attempt that times out", &[STATUS, LEASE_END, ERROR, PROGRESS, AGAIN, own], late).await;
    job.begin("queued", &[("deadline_at", BEFORE)]).await;
    let own: &[&str] = &["attempt_number", "completed_at", "dead_at", "next_retry_at"];
    let late = row_exists(server, "SELECT 1 FROM jobs WHERE status = 'failed'");
    job.run("a deadline that passes", &[STATUS, LEASE_END, ERROR, own], late).await;
    job.becomes("failed").await;
}

async fn cancelled_and_retried(job: &mut Rig<'_>) {
    let server = job.server;
    let (id, lease) = (job.id.clone(), job.lease.clone());
    job.begin("running", &[]).await;
    let cancel = filled::cancel(server, &id);
    job.run("CancelJob of a running job", &[CANCELLATION], cancel).await;
    let filter = pb::JobFilter { ids: vec![id.clone()], ..Default::default() };
    job.begin("running", &[]).await;
    let request = pb::CancelJobsRequest {
        filter: Some(filter.clone()),
        actor: "ann".into(),
        reason: "not needed".into(),
        ..Default::default()
    };
    let mut jobs = server.jobs();
    let cancel = jobs.cancel_jobs(request);
    job.run("CancelJobs", &[CANCELLATION], cancel).await;
    job.begin(
        "running",
        &[("cancel_requested_at", BEFORE), ("cancel_requested_by", "'bob'"), ("cancel_reason", "'over'")],
    )
    .await;
    let request = pb::AcknowledgeJobCancellationRequest { job_id: id.clone(), lease_id: lease };
    let mut workers = server.job_workers();
    let acknowledge = workers.acknowledge_job_cancellation(request);
    let own: &[&str] = &["heartbeat_at", "completed_at", "next_retry_at"];
    job.run("AcknowledgeJobCancellation", &[STATUS, LEASE_END, own], acknowledge).await;
    job.begin("queued", &[]).await;
    let cancel = filled::cancel(server, &id);
    let own: &[&str] = &["attempt_number", "completed_at", "next_retry_at"];
    job.run("CancelJob of a queued job", &[STATUS, LEASE_END, CANCELLATION, own], cancel).await;

    let stale: &[(&str, &str)] = &[
        ("cancel_requested_at", BEFORE),
        ("cancel_requested_by", "'bob'"),
        ("cancel_reason", "'over'"),
        ("result", r#"'{"rows": 3}'"#),
    ];
    let own: &[&str] = &["failures", "rescues", "result", "completed_at", "dead_at", "deadline_at", "scheduled_at"];
    let columns = [STATUS, LEASE_END, PROGRESS, ERROR, CANCELLATION, AGAIN, own];
    job.begin("failed", stale).await;
    let request = pb::RetryJobRequest { id: id.clone(), actor: "ann".into(), ..Default::default() };
    let mut retrying = server.jobs();
    let retry = retrying.retry_job(request);
    job.run("RetryJob", &columns, retry).await;
    job.begin("failed", stale).await;
    let request = pb::RetryJobsRequest { filter: Some(filter), actor: "ann".into(), ..Default::default() };
    let retry = jobs.retry_jobs(request);
    job.run("RetryJobs", &columns, retry).await;
}

#[on_both]
async fn what_happens_to_a_job_changes_only_its_columns(backend: Backend) {
    let server = filled::started(backend).await;
    let created = server.jobs().create_job(filled::job("x")).await.map(Response::into_inner).unwrap();
    let stored = Stored::open(backend, &server).await;
    let row = Observed::only(backend, &stored, "jobs").await;
    row.mark(&[]).await;
    let lease = uuid::Uuid::parse_str(LEASE).unwrap().to_string();
    let mut job = Rig { server: &server, id: created.id, lease, row };
    claimed_and_worked(&mut job).await;
    failed(&mut job).await;
    cancelled_and_retried(&mut job).await;
    job.row.finish(&[
        "job_type",
        "queue_name",
        "priority",
        "created_at",
        "max_attempts",
        "payload",
        "concurrency_key",
        "max_rescues",
        "timeout_ms",
        "retry_policy",
        "dead_letter",
        "unique_key",
        "unique_period",
        "unique_states",
        "request_id",
        "request_hash",
        "schedule_id",
        "tick_at",
    ]);
    stored.db.close().await.unwrap();
}
