//! Implementation of `JobService`.

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use prost::Message;
use sea_orm::EntityTrait;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{
    batch::group_commit::GroupCommit,
    clock,
    db::{Db, row},
    entity::job,
    error::{Error, Result},
    jobs::{
        Queue, check as jobs_check,
        query::{get, list, stats},
        state::{Move, label},
        store::{
            bulk::{BulkAction, BulkMove},
            create::{CreateOutcome, Creator},
            delete,
            writer::JobWriter,
        },
        types::LiveTypes,
        watch::{Watch, snapshots::Snapshots, source::WatchSource, tail::LogTail},
    },
    monitor::{Feed, WatchSlots},
    pb::{self, job_service_server::JobService},
    rpc::{Reply, check, limits::snapshots::SnapshotMemory, time, work},
};

/// Maximum number of jobs created by one call.
const MAX_JOBS_PER_CALL: usize = 10_000;

/// Number of jobs created per transaction of a call. Other writers take turns between two transactions.
const JOBS_PER_TRANSACTION: usize = 1_000;

/// Stream of responses.
type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Implementation of `JobService`. Clones share the state.
#[derive(Clone)]
pub struct Jobs {
    db: Db,
    watch_source: WatchSource,
    types: LiveTypes,
    creator: GroupCommit<Creator>,
    writer: JobWriter,
}

impl Jobs {
    /// Creates the service of a queue. Watches read the feed and take `places`; snapshots take `memory`.
    pub fn new(
        queue: &Queue,
        feed: Feed,
        places: WatchSlots,
        memory: SnapshotMemory,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            db: queue.db.clone(),
            watch_source: WatchSource {
                snapshots: Snapshots::new(queue.db.clone(), feed.clone(), memory),
                db: queue.db.clone(),
                feed,
                places,
                shutdown,
            },
            types: queue.types.clone(),
            creator: queue.creator.clone(),
            writer: queue.writer.clone(),
        }
    }

    async fn read_job(&self, id: Uuid) -> Result<job::Model> {
        let job = job::Entity::find_by_id(id).one(self.db.reader()).await?;
        row::require(job, "job", id)
    }

    /// Applies a move to a job and reads the whole job.
    async fn move_and_read(&self, id: Uuid, job_move: Move) -> Reply<pb::Job> {
        self.writer.apply_move(id, job_move).await?;
        Ok(Response::new(self.read_job(id).await?.into()))
    }

    async fn move_jobs(
        &self,
        filter: Option<pb::JobFilter>,
        all: bool,
        action: BulkAction,
        dry_run: bool,
    ) -> Reply<pb::MoveJobsResponse> {
        let filter = filter.unwrap_or_default();
        let condition = filter.condition(self.db.backend(), clock::now())?;
        let bulk = BulkMove::new(condition, all, action)?;
        Ok(Response::new(bulk.run(&self.db, &self.writer, dry_run).await?))
    }
}

#[tonic::async_trait]
impl JobService for Jobs {
    type TailJobLogsStream = Responses<pb::JobLog>;
    type WatchJobStream = Responses<pb::WatchJobsResponse>;
    type WatchJobsStream = Responses<pb::WatchJobsResponse>;

    async fn create_job(&self, request: Request<pb::CreateJobRequest>) -> Reply<pb::Job> {
        let (types, now) = (self.types.current(), clock::now());
        let request = request.into_inner();
        let checking = work::run_by_size(request.encoded_len(), move || jobs_check::new_job("", request, &types, now));
        let new_job = checking.await?;
        let outcome = self.creator.submit(Arc::new(vec![new_job])).await?.pop();
        let job = match outcome {
            Some(CreateOutcome::Created(job)) => *job,
            Some(CreateOutcome::Existed(id)) => self.read_job(id).await?,
            Some(CreateOutcome::KeyHeld { id, status }) => {
                Err(Error::KeyHeld { field: "job.unique.key", job_id: id.to_string(), status: label(status) })?
            }
            Some(CreateOutcome::RequestReused(_)) => Err(Error::KeyReused { field: "request_id" })?,
            None => Err(Error::internal("the outcome of a creation is missing"))?,
        };
        Ok(Response::new(job.into()))
    }

    async fn batch_create_jobs(
        &self,
        request: Request<pb::BatchCreateJobsRequest>,
    ) -> Reply<pb::BatchCreateJobsResponse> {
        let request = request.into_inner();
        check::within("requests", request.requests.len(), 1..=MAX_JOBS_PER_CALL)?;
        let (types, now) = (self.types.current(), clock::now());
        let checking = work::run_by_size(request.encoded_len(), move || {
            let requests = request.requests.into_iter().enumerate();
            let jobs = requests
                .map(|(index, request)| jobs_check::new_job(&format!("requests[{index}]."), request, &types, now));
            jobs.collect::<Result<Vec<_>>>()
        });
        let mut jobs = checking.await?.into_iter();
        let mut results = Vec::with_capacity(jobs.len());
        while jobs.len() > 0 {
            let chunk = jobs.by_ref().take(JOBS_PER_TRANSACTION).collect();
            let outcomes = self.creator.submit(Arc::new(chunk)).await?;
            results.extend(outcomes.into_iter().map(batch_result));
        }
        let outcome = i32::from(pb::BatchCreateJobsOutcome::Created);
        let created_count = results.iter().filter(|result| result.outcome == outcome).count();
        let created = i32::try_from(created_count).unwrap_or(i32::MAX);
        Ok(Response::new(pb::BatchCreateJobsResponse { results, created }))
    }

    async fn get_job(&self, request: Request<pb::GetJobRequest>) -> Reply<pb::Job> {
        let job = get::get_job(&self.db, request.into_inner()).await?;
        Ok(Response::new(job))
    }

    async fn list_jobs(&self, request: Request<pb::ListJobsRequest>) -> Reply<pb::ListJobsResponse> {
        let page = list::list_jobs(&self.db, request.into_inner()).await?;
        Ok(Response::new(page))
    }

    async fn search_jobs(&self, request: Request<pb::SearchJobsRequest>) -> Reply<pb::SearchJobsResponse> {
        let page = list::search_jobs(&self.db, request.into_inner()).await?;
        Ok(Response::new(page))
    }

    async fn list_job_attempts(
        &self,
        request: Request<pb::ListJobAttemptsRequest>,
    ) -> Reply<pb::ListJobAttemptsResponse> {
        let page = get::list_attempts(&self.db, request.into_inner()).await?;
        Ok(Response::new(page))
    }

    async fn list_job_transitions(
        &self,
        request: Request<pb::ListJobTransitionsRequest>,
    ) -> Reply<pb::ListJobTransitionsResponse> {
        let page = get::list_transitions(&self.db, request.into_inner()).await?;
        Ok(Response::new(page))
    }

    async fn list_job_logs(&self, request: Request<pb::ListJobLogsRequest>) -> Reply<pb::ListJobLogsResponse> {
        let page = get::list_logs(&self.db, request.into_inner()).await?;
        Ok(Response::new(page))
    }

    async fn cancel_job(&self, request: Request<pb::CancelJobRequest>) -> Reply<pb::Job> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let cause = jobs_check::cause(peer, &request.actor, &request.reason)?;
        self.move_and_read(id, Move::Cancel(cause)).await
    }

    async fn retry_job(&self, request: Request<pb::RetryJobRequest>) -> Reply<pb::Job> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let cause = jobs_check::cause(peer, &request.actor, &request.reason)?;
        let requested_at = request.scheduled_at.map(|at| time::from_proto("scheduled_at", at)).transpose()?;
        let now = clock::now();
        let at = requested_at.map(|at| at.max(now));
        self.move_and_read(id, Move::Retry(cause, at)).await
    }

    async fn delete_job(&self, request: Request<pb::DeleteJobRequest>) -> Reply<()> {
        let id = check::uuid("id", &request.into_inner().id)?;
        delete::delete_job(&self.db, id).await?;
        Ok(Response::new(()))
    }

    async fn cancel_jobs(&self, request: Request<pb::CancelJobsRequest>) -> Reply<pb::MoveJobsResponse> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let cause = jobs_check::cause(peer, &request.actor, &request.reason)?;
        let action = BulkAction::Cancel(cause);
        self.move_jobs(request.filter, request.all, action, request.dry_run).await
    }

    async fn retry_jobs(&self, request: Request<pb::RetryJobsRequest>) -> Reply<pb::MoveJobsResponse> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let cause = jobs_check::cause(peer, &request.actor, &request.reason)?;
        let action = BulkAction::Retry(cause);
        self.move_jobs(request.filter, request.all, action, request.dry_run).await
    }

    async fn delete_jobs(&self, request: Request<pb::DeleteJobsRequest>) -> Reply<pb::MoveJobsResponse> {
        let request = request.into_inner();
        self.move_jobs(request.filter, request.all, BulkAction::Delete, request.dry_run).await
    }

    async fn get_job_stats(&self, request: Request<pb::GetJobStatsRequest>) -> Reply<pb::GetJobStatsResponse> {
        let stats = stats::job_stats(&self.db, request.into_inner()).await?;
        Ok(Response::new(stats))
    }

    async fn tail_job_logs(&self, request: Request<pb::TailJobLogsRequest>) -> Reply<Self::TailJobLogsStream> {
        let tail = LogTail::new(&self.watch_source, request.into_inner()).await?;
        Ok(Response::new(Box::pin(tail.stream())))
    }

    async fn watch_job(&self, request: Request<pb::WatchJobRequest>) -> Reply<Self::WatchJobStream> {
        let watch = Watch::of_one(&self.watch_source, request.into_inner()).await?;
        Ok(Response::new(Box::pin(watch.stream())))
    }

    async fn watch_jobs(&self, request: Request<pb::WatchJobsRequest>) -> Reply<Self::WatchJobsStream> {
        let watch = Watch::of_many(&self.watch_source, request.into_inner()).await?;
        Ok(Response::new(Box::pin(watch.stream())))
    }
}

fn batch_result(outcome: CreateOutcome) -> pb::BatchCreateJobsResult {
    use pb::BatchCreateJobsOutcome as Outcome;
    let (id, outcome) = match outcome {
        CreateOutcome::Created(job) => (job.id, Outcome::Created),
        CreateOutcome::Existed(id) => (id, Outcome::Existed),
        CreateOutcome::KeyHeld { id, .. } => (id, Outcome::UniqueKeyHeld),
        CreateOutcome::RequestReused(id) => (id, Outcome::RequestIdReused),
    };
    pb::BatchCreateJobsResult { job_id: id.to_string(), outcome: outcome.into() }
}
