//! `JobService`.

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
            bulk::{Bulk, Wanted},
            create::{Creator, Made},
            delete,
            writer::Desk,
        },
        types::LiveTypes,
        watch::{Watch, snapshots::Snapshots, tail::Tail},
    },
    monitor::{Feed, Places},
    pb::{self, job_service_server::JobService},
    rpc::{Reply, check, limits::snapshots::SnapshotMemory, time, work},
};

/// How many jobs one call makes at most.
const BATCH: usize = 10_000;

/// Number of jobs that one transaction of a call makes. Other writers have their turns between two of them.
const TRANSACTION: usize = 1_000;

/// A stream of responses.
type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The jobs.
#[derive(Clone)]
pub struct Jobs {
    pub(crate) db: Db,
    pub(crate) feed: Feed,
    /// How many streams may be open, watches of other things with them.
    pub(crate) places: Places,
    pub(crate) snapshots: Snapshots,
    pub(crate) shutdown: CancellationToken,
    types: LiveTypes,
    creator: GroupCommit<Creator>,
    desk: Desk,
}

impl Jobs {
    /// The jobs of a queue, watched on the feed. Snapshots take the `memory`.
    pub fn new(
        queue: &Queue,
        feed: Feed,
        places: Places,
        memory: SnapshotMemory,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            snapshots: Snapshots::new(queue.db.clone(), feed.clone(), memory),
            db: queue.db.clone(),
            feed,
            places,
            shutdown,
            types: queue.types.clone(),
            creator: queue.creator.clone(),
            desk: queue.desk.clone(),
        }
    }

    async fn read(&self, id: Uuid) -> Result<job::Model> {
        let job = job::Entity::find_by_id(id).one(self.db.reader()).await?;
        row::found(job, "job", id)
    }

    /// Has something happen to a job, and gives all of it.
    async fn carry_out(&self, id: Uuid, what: Move) -> Reply<pb::Job> {
        self.desk.carry_out(id, what).await?;
        Ok(Response::new(self.read(id).await?.into()))
    }

    async fn move_all(
        &self,
        filter: Option<pb::JobFilter>,
        all: bool,
        wanted: Wanted,
        dry: bool,
    ) -> Reply<pb::MoveJobsResponse> {
        let filter = filter.unwrap_or_default();
        let condition = filter.condition(self.db.backend(), clock::now())?;
        let bulk = Bulk::new(condition, all, wanted)?;
        Ok(Response::new(bulk.run(&self.db, &self.desk, dry).await?))
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
        let job = work::by_size(request.encoded_len(), move || {
            jobs_check::new_job("", request, &types, now)
        });
        let job = job.await?;
        let made = self.creator.submit(Arc::new(vec![job])).await?.pop();
        let job = match made {
            Some(Made::Created(job)) => *job,
            Some(Made::Existed(id)) => self.read(id).await?,
            Some(Made::KeyHeld { id, status }) => Err(Error::KeyHeld {
                field: "unique.key",
                job_id: id.to_string(),
                status: label(status),
            })?,
            Some(Made::RequestReused(_)) => Err(Error::KeyReused {
                field: "request_id",
            })?,
            None => Err(Error::internal("a job that was to be made is missing"))?,
        };
        Ok(Response::new(job.into()))
    }

    async fn batch_create_jobs(
        &self,
        request: Request<pb::BatchCreateJobsRequest>,
    ) -> Reply<pb::BatchCreateJobsResponse> {
        let request = request.into_inner();
        check::within("requests", request.requests.len(), 1..=BATCH)?;
        let (types, now) = (self.types.current(), clock::now());
        let jobs = work::by_size(request.encoded_len(), move || {
            let requests = request.requests.into_iter().enumerate();
            let jobs = requests.map(|(at, request)| {
                jobs_check::new_job(&format!("requests[{at}]."), request, &types, now)
            });
            jobs.collect::<Result<Vec<_>>>()
        });
        let mut jobs = jobs.await?.into_iter();
        let mut results = Vec::with_capacity(jobs.len());
        while jobs.len() > 0 {
            let some = jobs.by_ref().take(TRANSACTION).collect();
            let made = self.creator.submit(Arc::new(some)).await?;
            results.extend(made.into_iter().map(result));
        }
        let outcome = i32::from(pb::BatchCreateJobsOutcome::Created);
        let created = results.iter().filter(|result| result.outcome == outcome);
        let created = i32::try_from(created.count()).unwrap_or(i32::MAX);
        Ok(Response::new(pb::BatchCreateJobsResponse {
            results,
            created,
        }))
    }

    async fn get_job(&self, request: Request<pb::GetJobRequest>) -> Reply<pb::Job> {
        let job = get::get(&self.db, request.into_inner()).await?;
        Ok(Response::new(job))
    }

    async fn list_jobs(
        &self,
        request: Request<pb::ListJobsRequest>,
    ) -> Reply<pb::ListJobsResponse> {
        let page = list::list(&self.db, request.into_inner()).await?;
        Ok(Response::new(page))
    }

    async fn search_jobs(
        &self,
        request: Request<pb::SearchJobsRequest>,
    ) -> Reply<pb::SearchJobsResponse> {
        let page = list::search(&self.db, request.into_inner()).await?;
        Ok(Response::new(page))
    }

    async fn list_job_attempts(
        &self,
        request: Request<pb::ListJobAttemptsRequest>,
    ) -> Reply<pb::ListJobAttemptsResponse> {
        let page = get::attempts(&self.db, request.into_inner()).await?;
        Ok(Response::new(page))
    }

    async fn list_job_transitions(
        &self,
        request: Request<pb::ListJobTransitionsRequest>,
    ) -> Reply<pb::ListJobTransitionsResponse> {
        let page = get::transitions(&self.db, request.into_inner()).await?;
        Ok(Response::new(page))
    }

    async fn list_job_logs(
        &self,
        request: Request<pb::ListJobLogsRequest>,
    ) -> Reply<pb::ListJobLogsResponse> {
        let page = get::logs(&self.db, request.into_inner()).await?;
        Ok(Response::new(page))
    }

    async fn cancel_job(&self, request: Request<pb::CancelJobRequest>) -> Reply<pb::Job> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let cause = jobs_check::cause(peer, &request.actor, &request.reason)?;
        self.carry_out(id, Move::Cancel(cause)).await
    }

    async fn retry_job(&self, request: Request<pb::RetryJobRequest>) -> Reply<pb::Job> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let cause = jobs_check::cause(peer, &request.actor, &request.reason)?;
        let at = request.scheduled_at;
        let at = at.map(|at| time::from_proto("scheduled_at", at));
        let now = clock::now();
        let at = at.transpose()?.map(|at| at.max(now));
        self.carry_out(id, Move::Retry(cause, at)).await
    }

    async fn delete_job(
        &self,
        request: Request<pb::DeleteJobRequest>,
    ) -> Reply<pb::DeleteJobResponse> {
        let id = check::uuid("id", &request.into_inner().id)?;
        delete::delete(&self.db, id).await?;
        Ok(Response::new(pb::DeleteJobResponse {}))
    }

    async fn cancel_jobs(
        &self,
        request: Request<pb::CancelJobsRequest>,
    ) -> Reply<pb::MoveJobsResponse> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let cause = jobs_check::cause(peer, &request.actor, &request.reason)?;
        let wanted = Wanted::Cancelled(cause);
        self.move_all(request.filter, request.all, wanted, request.dry_run)
            .await
    }

    async fn retry_jobs(
        &self,
        request: Request<pb::RetryJobsRequest>,
    ) -> Reply<pb::MoveJobsResponse> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let cause = jobs_check::cause(peer, &request.actor, &request.reason)?;
        let wanted = Wanted::Retried(cause);
        self.move_all(request.filter, request.all, wanted, request.dry_run)
            .await
    }

    async fn delete_jobs(
        &self,
        request: Request<pb::DeleteJobsRequest>,
    ) -> Reply<pb::MoveJobsResponse> {
        let request = request.into_inner();
        self.move_all(
            request.filter,
            request.all,
            Wanted::Deleted,
            request.dry_run,
        )
        .await
    }

    async fn get_job_stats(
        &self,
        request: Request<pb::GetJobStatsRequest>,
    ) -> Reply<pb::GetJobStatsResponse> {
        let stats = stats::stats(&self.db, request.into_inner()).await?;
        Ok(Response::new(stats))
    }

    async fn tail_job_logs(
        &self,
        request: Request<pb::TailJobLogsRequest>,
    ) -> Reply<Self::TailJobLogsStream> {
        let tail = Tail::new(self, request.into_inner()).await?;
        Ok(Response::new(Box::pin(tail.stream())))
    }

    async fn watch_job(
        &self,
        request: Request<pb::WatchJobRequest>,
    ) -> Reply<Self::WatchJobStream> {
        let watch = Watch::of_one(self, request.into_inner()).await?;
        Ok(Response::new(Box::pin(watch.stream())))
    }

    async fn watch_jobs(
        &self,
        request: Request<pb::WatchJobsRequest>,
    ) -> Reply<Self::WatchJobsStream> {
        let watch = Watch::of_many(self, request.into_inner()).await?;
        Ok(Response::new(Box::pin(watch.stream())))
    }
}

fn result(made: Made) -> pb::BatchCreateJobsResult {
    use pb::BatchCreateJobsOutcome as Outcome;
    let (id, outcome) = match made {
        Made::Created(job) => (job.id, Outcome::Created),
        Made::Existed(id) => (id, Outcome::Existed),
        Made::KeyHeld { id, .. } => (id, Outcome::UniqueKeyHeld),
        Made::RequestReused(id) => (id, Outcome::RequestIdReused),
    };
    pb::BatchCreateJobsResult {
        job_id: id.to_string(),
        outcome: outcome.into(),
    }
}
