//! `JobWorkerService`.

use std::{collections::HashSet, pin::Pin, time::Duration};

use futures_util::Stream;
use prost::Message;
use sea_orm::EntityTrait;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    lease_state::{lease_state, lost_lease_state},
    stream::{self, SessionContext},
};
use crate::{
    db::row,
    entity::job::{self, Model},
    error::{Error, Result},
    jobs::{
        Queue,
        check::{self as jobs_check, LeaseReport},
        dispatch::claim::ClaimedJob,
        state::{Move, Report},
        store::apply::Task,
    },
    monitor::WatchSlots,
    pb::{self, job_worker_service_server::JobWorkerService},
    rpc::{Reply, check, time, work},
};

/// Lease duration of `ClaimJobs` if the request has none.
const DEFAULT_LEASE: Duration = Duration::from_secs(30);

/// Maximum wait of `ClaimJobs`.
const MAX_WAIT: Duration = Duration::from_mins(1);

/// Maximum number of jobs per call.
const MAX_JOBS_PER_CALL: usize = 1_000;

/// Implementation of `JobWorkerService`.
#[derive(Debug, Clone)]
pub struct JobWorkers {
    context: SessionContext,
    /// Slots of open streams, shared with watches.
    places: WatchSlots,
}

impl JobWorkers {
    /// Creates the service of a queue. Streams take `places`; messages have at most `max_message_size` bytes.
    pub fn new(queue: Queue, places: WatchSlots, max_message_size: usize, shutdown: CancellationToken) -> Self {
        Self { context: SessionContext { queue, max_message_size, shutdown }, places }
    }

    fn queue(&self) -> &Queue {
        &self.context.queue
    }

    async fn apply_report(&self, (id, lease_id, report): LeaseReport) -> Result<Model> {
        let job_move = Move::Report(lease_id, report);
        self.queue().writer.apply_move(id, job_move).await
    }

    /// Applies a report and reads the whole job.
    async fn report_and_read(&self, reported: LeaseReport) -> Reply<pb::Job> {
        let id = reported.0;
        self.apply_report(reported).await?;
        let job = job::Entity::find_by_id(id).one(self.queue().db.reader());
        let job = job.await.map_err(Error::from)?;
        Ok(Response::new(row::require(job, "job", id)?.into()))
    }
}

#[tonic::async_trait]
impl JobWorkerService for JobWorkers {
    type WorkJobsStream = Pin<Box<dyn Stream<Item = Result<pb::WorkJobsResponse, Status>> + Send>>;

    async fn claim_jobs(&self, request: Request<pb::ClaimJobsRequest>) -> Reply<pb::ClaimJobsResponse> {
        let request = request.into_inner();
        let worker_id = check::name("worker_id", &request.worker_id, 1..=100)?;
        let filter = jobs_check::worker_filter(&request.queue_names, &request.job_types)?;
        let max_jobs = if request.max_jobs == 0 { 1 } else { check::within("max_jobs", request.max_jobs, 1..=1_000)? };
        let wait = request
            .wait
            .map(|wait| time::duration("wait", wait, &(Duration::ZERO..=MAX_WAIT)))
            .transpose()?
            .unwrap_or_default();
        let lease = jobs_check::lease(request.lease_duration, DEFAULT_LEASE)?;
        let capacity = usize::try_from(max_jobs).unwrap_or(1);
        let (mut inbox, no_job) =
            self.queue().dispatcher.register_once(worker_id, filter, lease, capacity, wait.is_zero());
        let claimed = tokio::select! {
            biased;
            claimed = inbox.next() => claimed.unwrap_or_default(),
            () = self.context.shutdown.cancelled() => Err(Error::ShuttingDown)?,
            _ = no_job, if wait.is_zero() => Vec::new(),
            // Without an answer of the database, the call must still end.
            () = sleep(wait.max(Duration::from_secs(3))), if wait.is_zero() => {
                Err(self.queue().db.timeout_error().await)?
            }
            () = sleep(wait), if !wait.is_zero() => Vec::new(),
        };
        Ok(Response::new(pb::ClaimJobsResponse { jobs: claimed.into_iter().map(Into::into).collect() }))
    }

    async fn heartbeat_jobs(&self, request: Request<pb::HeartbeatJobsRequest>) -> Reply<pb::HeartbeatJobsResponse> {
        let leases = request.into_inner().leases;
        check::within("leases", leases.len(), 1..=MAX_JOBS_PER_CALL)?;
        let ids = leases.iter().enumerate().map(|(index, lease)| {
            let prefix = format!("leases[{index}].");
            jobs_check::lease_ids(&prefix, &lease.job_id, &lease.lease_id)
        });
        let ids = ids.collect::<Result<Vec<_>>>()?;
        let mut pending = Vec::with_capacity(ids.len());
        for (id, lease_id) in ids {
            let writer = &self.queue().writer;
            let result = writer.report(id, lease_id, Report::Heartbeat).await?;
            pending.push((id, result));
        }
        let mut states = Vec::with_capacity(pending.len());
        for (id, result) in pending {
            let result = result.await.map_err(|_| Error::ShuttingDown)?;
            states.push(match result {
                Ok(jobs) => lease_state(&jobs)?,
                Err(Error::LeaseLost { .. }) => lost_lease_state(id),
                Err(error) => Err(error)?,
            });
        }
        Ok(Response::new(pb::HeartbeatJobsResponse { leases: states }))
    }

    async fn update_job_progress(
        &self,
        request: Request<pb::UpdateJobProgressRequest>,
    ) -> Reply<pb::UpdateJobProgressResponse> {
        let (id, lease_id, progress) = jobs_check::progress(&request.into_inner())?;
        let report = Report::Progress(progress, self.queue().throttle.try_publish(id));
        let job = self.apply_report((id, lease_id, report)).await?;
        Ok(Response::new(pb::UpdateJobProgressResponse { lease: Some(lease_state(&[job])?) }))
    }

    async fn append_job_logs(&self, request: Request<pb::AppendJobLogsRequest>) -> Reply<pb::AppendJobLogsResponse> {
        let request = request.into_inner();
        let logs = work::run_by_size(request.encoded_len(), || jobs_check::logs(request));
        let job = self.apply_report(logs.await?).await?;
        Ok(Response::new(pb::AppendJobLogsResponse { last_line: job.log_lines, lease: Some(lease_state(&[job])?) }))
    }

    async fn complete_jobs(&self, request: Request<pb::CompleteJobsRequest>) -> Reply<pb::CompleteJobsResponse> {
        let request = request.into_inner();
        check::within("completions", request.completions.len(), 1..=MAX_JOBS_PER_CALL)?;
        let task = work::run_by_size(request.encoded_len(), || completions(request.completions));
        self.queue().writer.apply_task(task.await?).await?;
        Ok(Response::new(pb::CompleteJobsResponse {}))
    }

    async fn fail_job(&self, request: Request<pb::FailJobRequest>) -> Reply<pb::Job> {
        self.report_and_read(jobs_check::failure(&request.into_inner())?).await
    }

    async fn release_job(&self, request: Request<pb::ReleaseJobRequest>) -> Reply<pb::Job> {
        self.report_and_read(jobs_check::release(&request.into_inner())?).await
    }

    async fn acknowledge_job_cancellation(
        &self,
        request: Request<pb::AcknowledgeJobCancellationRequest>,
    ) -> Reply<pb::Job> {
        self.report_and_read(jobs_check::acknowledgement(&request.into_inner())?).await
    }

    async fn work_jobs(&self, request: Request<Streaming<pb::WorkJobsRequest>>) -> Reply<Self::WorkJobsStream> {
        let place = self.places.acquire()?;
        let responses = stream::open(self.context.clone(), place, request.into_inner());
        Ok(Response::new(Box::pin(responses)))
    }
}

/// Builds the task of a request. Completions must be of different jobs.
fn completions(completions: Vec<pb::JobCompletion>) -> Result<Task> {
    let mut seen = HashSet::new();
    let mut moves = Vec::with_capacity(completions.len());
    for (index, completion) in completions.into_iter().enumerate() {
        let prefix = format!("completions[{index}].");
        let (id, lease_id, report) = jobs_check::completion(&prefix, completion)?;
        if !seen.insert(id) {
            return Err(Error::invalid(format!("{prefix}job_id"), "must not be repeated"));
        }
        moves.push((id, Move::Report(lease_id, report)));
    }
    Ok(Task(moves))
}

impl From<ClaimedJob> for pb::ClaimedJob {
    fn from(claimed: ClaimedJob) -> Self {
        Self {
            lease_id: claimed.lease_id.to_string(),
            lease_expires_at: claimed.job.lease_expires_at.map(time::to_proto),
            lease_duration: Some(time::duration_to_proto(claimed.lease)),
            attempt_deadline_at: claimed.job.attempt_deadline_at.map(time::to_proto),
            job: Some(claimed.job.into()),
        }
    }
}
