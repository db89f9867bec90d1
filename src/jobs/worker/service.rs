//! `JobWorkerService`.

use std::{collections::HashSet, pin::Pin, time::Duration};

use futures_util::Stream;
use prost::Message;
use sea_orm::EntityTrait;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::stream;
use crate::{
    db::row,
    entity::job::{self, Model},
    error::{Error, Result},
    jobs::{
        Queue,
        check::{self as jobs_check, Reported},
        dispatch::claim::Claimed,
        state::{Move, Report},
        store::apply::Task,
    },
    monitor::WatchSlots,
    pb::{self, job_worker_service_server::JobWorkerService},
    rpc::{Reply, check, layer, time, work},
};

/// How long the leases of `ClaimJobs` are unless the worker says otherwise.
const LEASE: Duration = Duration::from_secs(30);

/// How long `ClaimJobs` waits at most.
const WAIT: Duration = Duration::from_mins(1);

/// How many jobs one call is about at most.
const JOBS: usize = 1_000;

/// Gives jobs to workers, and hears from them.
#[derive(Debug, Clone)]
pub struct JobWorkers {
    pub(crate) queue: Queue,
    /// Number of streams that may be open, watches included.
    places: WatchSlots,
    /// Largest message that is accepted, in bytes.
    max_message_size: usize,
    pub(crate) shutdown: CancellationToken,
}

impl JobWorkers {
    /// The workers of this queue, whose streams take `places`, and whose messages have up to `max_message_size` bytes.
    pub fn new(
        queue: Queue,
        places: WatchSlots,
        max_message_size: usize,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            queue,
            places,
            max_message_size,
            shutdown,
        }
    }

    /// The next message of a worker. A failure of the message itself has details.
    pub(crate) async fn next(
        &self,
        incoming: &mut Streaming<pb::WorkJobsRequest>,
    ) -> Result<Option<pb::WorkJobsRequest>, Status> {
        layer::next(incoming, self.max_message_size).await
    }

    async fn report(&self, (id, lease_id, report): Reported) -> Result<Model> {
        let what = Move::Report(lease_id, report);
        self.queue.desk.carry_out(id, what).await
    }

    /// Reports, and gives all of the job.
    async fn report_and_read(&self, reported: Reported) -> Reply<pb::Job> {
        let id = reported.0;
        self.report(reported).await?;
        let job = job::Entity::find_by_id(id).one(self.queue.db.reader());
        let job = job.await.map_err(Error::from)?;
        Ok(Response::new(row::found(job, "job", id)?.into()))
    }
}

#[tonic::async_trait]
impl JobWorkerService for JobWorkers {
    type WorkJobsStream = Pin<Box<dyn Stream<Item = Result<pb::WorkJobsResponse, Status>> + Send>>;

    async fn claim_jobs(
        &self,
        request: Request<pb::ClaimJobsRequest>,
    ) -> Reply<pb::ClaimJobsResponse> {
        let request = request.into_inner();
        let worker_id = check::name("worker_id", &request.worker_id, 1..=100)?;
        let accepts = jobs_check::accepts(&request.queue_names, &request.job_types)?;
        let most = if request.max_jobs == 0 {
            1
        } else {
            check::within("max_jobs", request.max_jobs, 1..=1_000)?
        };
        let wait = request.wait;
        let wait = wait.map(|wait| time::duration("wait", wait, &(Duration::ZERO..=WAIT)));
        let wait = wait.transpose()?.unwrap_or_default();
        let lease = jobs_check::lease(request.lease_duration, LEASE)?;
        let most = usize::try_from(most).unwrap_or(1);
        let (mut inbox, nothing) =
            self.queue
                .dispatcher
                .enter_once(worker_id, accepts, lease, most, wait.is_zero());
        let claimed = tokio::select! {
            biased;
            claimed = inbox.next() => claimed.unwrap_or_default(),
            () = self.shutdown.cancelled() => Err(Error::ShuttingDown)?,
            _ = nothing, if wait.is_zero() => Vec::new(),
            // The database may not answer.
            () = sleep(wait.max(Duration::from_secs(3))), if wait.is_zero() => {
                Err(self.queue.db.unanswered().await)?
            }
            () = sleep(wait), if !wait.is_zero() => Vec::new(),
        };
        Ok(Response::new(pb::ClaimJobsResponse {
            jobs: claimed.into_iter().map(Into::into).collect(),
        }))
    }

    async fn heartbeat_jobs(
        &self,
        request: Request<pb::HeartbeatJobsRequest>,
    ) -> Reply<pb::HeartbeatJobsResponse> {
        let leases = request.into_inner().leases;
        check::within("leases", leases.len(), 1..=JOBS)?;
        let held = leases.iter().enumerate().map(|(at, held)| {
            jobs_check::held(&format!("leases[{at}]."), &held.job_id, &held.lease_id)
        });
        let held = held.collect::<Result<Vec<_>>>()?;
        let mut answers = Vec::with_capacity(held.len());
        for (id, lease_id) in held {
            let heartbeat = Report::Heartbeat;
            let answer = self.queue.desk.report(id, lease_id, heartbeat).await?;
            answers.push((id, answer));
        }
        let mut leases = Vec::with_capacity(answers.len());
        for (id, answer) in answers {
            let answer = answer.await.map_err(|_| Error::ShuttingDown)?;
            leases.push(match answer {
                Ok(jobs) => lease_state(&jobs)?,
                Err(Error::LeaseLost { .. }) => lost(id),
                Err(error) => Err(error)?,
            });
        }
        Ok(Response::new(pb::HeartbeatJobsResponse { leases }))
    }

    async fn update_job_progress(
        &self,
        request: Request<pb::UpdateJobProgressRequest>,
    ) -> Reply<pb::UpdateJobProgressResponse> {
        let (id, lease_id, progress) = jobs_check::progress(&request.into_inner())?;
        let report = Report::Progress(progress, self.queue.throttle.may_tell(id));
        let job = self.report((id, lease_id, report)).await?;
        Ok(Response::new(pb::UpdateJobProgressResponse {
            lease: Some(lease_state(&[job])?),
        }))
    }

    async fn append_job_logs(
        &self,
        request: Request<pb::AppendJobLogsRequest>,
    ) -> Reply<pb::AppendJobLogsResponse> {
        let request = request.into_inner();
        let logs = work::by_size(request.encoded_len(), || jobs_check::logs(request));
        let job = self.report(logs.await?).await?;
        Ok(Response::new(pb::AppendJobLogsResponse {
            last_line: job.log_lines,
            lease: Some(lease_state(&[job])?),
        }))
    }

    async fn complete_jobs(
        &self,
        request: Request<pb::CompleteJobsRequest>,
    ) -> Reply<pb::CompleteJobsResponse> {
        let request = request.into_inner();
        check::within("completions", request.completions.len(), 1..=JOBS)?;
        let task = work::by_size(request.encoded_len(), || completions(request.completions));
        self.queue.desk.carry_out_all(task.await?).await?;
        Ok(Response::new(pb::CompleteJobsResponse {}))
    }

    async fn fail_job(&self, request: Request<pb::FailJobRequest>) -> Reply<pb::Job> {
        self.report_and_read(jobs_check::failure(&request.into_inner())?)
            .await
    }

    async fn release_job(&self, request: Request<pb::ReleaseJobRequest>) -> Reply<pb::Job> {
        self.report_and_read(jobs_check::release(&request.into_inner())?)
            .await
    }

    async fn acknowledge_job_cancellation(
        &self,
        request: Request<pb::AcknowledgeJobCancellationRequest>,
    ) -> Reply<pb::Job> {
        self.report_and_read(jobs_check::acknowledgement(&request.into_inner())?)
            .await
    }

    async fn work_jobs(
        &self,
        request: Request<Streaming<pb::WorkJobsRequest>>,
    ) -> Reply<Self::WorkJobsStream> {
        let place = self.places.acquire()?;
        let responses = stream::work(self.clone(), place, request.into_inner());
        Ok(Response::new(Box::pin(responses)))
    }
}

/// The completions of a request, which must be of different jobs.
fn completions(completions: Vec<pb::JobCompletion>) -> Result<Task> {
    let mut seen = HashSet::new();
    let mut moves = Vec::with_capacity(completions.len());
    for (at, completion) in completions.into_iter().enumerate() {
        let at = format!("completions[{at}].");
        let (id, lease_id, report) = jobs_check::completion(&at, completion)?;
        if !seen.insert(id) {
            return Err(Error::invalid(format!("{at}job_id"), "comes twice"));
        }
        moves.push((id, Move::Report(lease_id, report)));
    }
    Ok(Task(moves))
}

/// What the lease of a job is that was just extended.
pub(crate) fn lease_state(jobs: &[Model]) -> Result<pb::JobLeaseState> {
    let job = jobs.first();
    let job = job.ok_or_else(|| Error::internal("a job of a task is missing"))?;
    Ok(pb::JobLeaseState {
        job_id: job.id.to_string(),
        lost: false,
        lease_expires_at: job.lease_expires_at.map(time::to_proto),
        cancel_requested: job.cancel_requested_at.is_some(),
        cancel_reason: job.cancel_reason.clone(),
    })
}

/// That a lease is lost.
pub(crate) fn lost(id: uuid::Uuid) -> pb::JobLeaseState {
    pb::JobLeaseState {
        job_id: id.to_string(),
        lost: true,
        ..Default::default()
    }
}

impl From<Claimed> for pb::ClaimedJob {
    fn from(claimed: Claimed) -> Self {
        Self {
            lease_id: claimed.lease_id.to_string(),
            lease_expires_at: claimed.job.lease_expires_at.map(time::to_proto),
            lease_duration: Some(time::length(claimed.lease)),
            attempt_deadline_at: claimed.job.attempt_deadline_at.map(time::to_proto),
            job: Some(claimed.job.into()),
        }
    }
}
