//! Implementation of `JobQueueService`.

use std::collections::BTreeMap;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder,
    QuerySelect, Select, sea_query::Expr,
};
use tonic::{Request, Response};
use uuid::Uuid;

use crate::{
    clock,
    db::{Db, row},
    entity::{
        self,
        job::{self, JobStatus},
        job_queue::{ActiveModel, Column, Entity, Model},
    },
    error::{Error, Result},
    feed,
    jobs::{
        query::{
            filter::in_status,
            stats::{self, QueueStats, TypeStats},
        },
        queue::Queue,
        wakeups::Wakeups,
    },
    pb::{self, ChangeKind, job_queue_service_server::JobQueueService, watch_response::Update},
    rpc::{Reply, check, mask::UpdateMask, page::Page, time},
    topics,
};

/// Fields that an update may change.
const UPDATABLE: [&str; 3] = ["description", "max_running", "max_running_per_key"];

/// Highest value of a limit of running jobs.
const MAX_RUNNING_LIMIT: i32 = 1_000_000;

/// Maximum number of queues in a response.
const MAX_QUEUES: usize = 1_000;

/// Maximum number of jobs named as users of a queue.
const MAX_NAMED_JOBS: u64 = 20;

/// Implementation of `JobQueueService`. Clones share the state.
#[derive(Debug, Clone)]
pub struct JobQueues {
    db: Db,
    /// Notified of changed settings, so that the next claim applies them.
    wakeups: Wakeups,
}

#[tonic::async_trait]
impl JobQueueService for JobQueues {
    async fn get_job_queue(&self, request: Request<pb::GetJobQueueRequest>) -> Reply<pb::JobQueue> {
        let name = queue_name("name", &request.into_inner().name)?;
        let queue = Entity::find_by_id(&name).one(self.db.reader()).await;
        let queue = queue.map_err(Error::from)?;
        Ok(Response::new(row::require(queue, "job queue", name)?.into()))
    }

    async fn list_job_queues(&self, request: Request<pb::ListJobQueuesRequest>) -> Reply<pb::ListJobQueuesResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let (size, token) = (request.page_size, &request.page_token);
        let page = Page::parse(size, token, "job_queues", &filter)?;
        let select = filter.select(&self.db)?;
        let rows = page.by_id(self.db.reader(), select, Column::Name).await?;
        let key = |queue: &Model| (0, queue.name.clone());
        let (job_queues, next_page_token) = page.paginate(rows, key, pb::JobQueue::from);
        Ok(Response::new(pb::ListJobQueuesResponse { job_queues, next_page_token }))
    }

    async fn update_job_queue(&self, request: Request<pb::UpdateJobQueueRequest>) -> Reply<pb::JobQueue> {
        let request = request.into_inner();
        let changes = request.job_queue.ok_or_else(|| Error::invalid("job_queue", "is required"))?;
        let name = queue_name("job_queue.name", &changes.name)?;
        let mask = UpdateMask::parse(request.update_mask, &UPDATABLE)?;
        let queue = self.change(&name, request.expected_version_id, |queue| changes.apply(&mask, queue)).await?;
        Ok(Response::new(queue))
    }

    async fn pause_job_queue(&self, request: Request<pb::PauseJobQueueRequest>) -> Reply<pb::JobQueue> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let name = queue_name("name", &request.name)?;
        let actor = check::actor("actor", &request.actor, peer)?;
        let reason = check::text("reason", &request.reason, 0..=1_000)?;
        let reason = Some(reason).filter(|reason| !reason.is_empty());
        let queue = self.change(&name, None, |queue| {
            if !queue.paused {
                queue.paused = true;
                queue.paused_at = Some(entity::now());
                queue.paused_by = Some(actor.clone());
                queue.pause_reason.clone_from(&reason);
            }
            Ok(())
        });
        Ok(Response::new(queue.await?))
    }

    async fn resume_job_queue(&self, request: Request<pb::ResumeJobQueueRequest>) -> Reply<pb::JobQueue> {
        let name = queue_name("name", &request.into_inner().name)?;
        let queue = self.db.write(async |tx| {
            let before = row::require(lock_settings(tx, &name).await?, "job queue", &name)?;
            let mut queue = before.clone();
            queue.paused = false;
            queue.paused_at = None;
            queue.paused_by = None;
            queue.pause_reason = None;
            save(tx, queue, Some(before)).await
        });
        let queue = queue.await?;
        self.wakeups.notify_freed(&name);
        Ok(Response::new(queue))
    }

    async fn delete_job_queue(&self, request: Request<pb::DeleteJobQueueRequest>) -> Reply<()> {
        let request = request.into_inner();
        let name = queue_name("name", &request.name)?;
        let deleted = self.db.write(async |tx| {
            let queue = row::require(lock_settings(tx, &name).await?, "job queue", &name)?;
            refuse_stale(Some(&queue), request.expected_version_id)?;
            refuse_in_use(tx, &name).await?;
            Entity::delete_by_id(&name).exec(tx).await?;
            record_change(tx, ChangeKind::Deleted, queue).await
        });
        deleted.await?;
        self.wakeups.notify_freed(&name);
        Ok(Response::new(()))
    }

    async fn get_queue_stats(&self, request: Request<pb::GetQueueStatsRequest>) -> Reply<pb::GetQueueStatsResponse> {
        let request = request.into_inner();
        let name = check::text("queue_name", &request.queue_name, 0..=100)?;
        let name = Some(name.as_str()).filter(|name| !name.is_empty());
        let window = stats::window(request.window)?;
        let mut queues = stats::queue_stats(&self.db, name, window, clock::now()).await?;
        let paused = self.paused(name).await?;
        for name in paused.keys() {
            queues.entry(name.clone()).or_default();
        }
        let queue = |(name, stats): (String, QueueStats)| {
            let paused = paused.get(&name).copied().unwrap_or_default();
            to_proto(name, paused, stats)
        };
        let queues = queues.into_iter().take(MAX_QUEUES).map(queue).collect();
        Ok(Response::new(pb::GetQueueStatsResponse { queues }))
    }
}

impl JobQueues {
    /// Creates the service of a queue.
    pub fn new(queue: &Queue) -> Self {
        Self { db: queue.db.clone(), wakeups: queue.wakeups.clone() }
    }

    /// Changes the settings of a queue, and creates them if absent.
    async fn change(
        &self,
        name: &str,
        expected: Option<i32>,
        change: impl Fn(&mut Model) -> Result<()>,
    ) -> Result<pb::JobQueue> {
        let attempt = || {
            self.db.write(async |tx| {
                let before = lock_settings(tx, name).await?;
                refuse_stale(before.as_ref(), expected)?;
                let mut queue = before.clone().unwrap_or_else(|| new_settings(name));
                change(&mut queue)?;
                save(tx, queue, before).await
            })
        };
        let queue = match attempt().await {
            // A concurrent request created the settings. The second try finds them.
            Err(Error::AlreadyExists { .. }) => attempt().await,
            result => result,
        }?;
        self.wakeups.notify_freed(name);
        Ok(queue)
    }

    /// Pause states of the queues with settings, or of one queue.
    async fn paused(&self, name: Option<&str>) -> Result<BTreeMap<String, bool>> {
        let mut select = Entity::find();
        if let Some(name) = name {
            select = select.filter(Column::Name.eq(name));
        }
        let paused: Vec<(String, bool)> =
            select.select_only().columns([Column::Name, Column::Paused]).into_tuple().all(self.db.reader()).await?;
        Ok(paused.into_iter().collect())
    }
}

/// Locks the settings of a queue until the end of the transaction.
async fn lock_settings(tx: &DatabaseTransaction, name: &str) -> Result<Option<Model>> {
    Ok(Entity::find_by_id(name).lock_exclusive().one(tx).await?)
}

fn refuse_stale(queue: Option<&Model>, expected: Option<i32>) -> Result<()> {
    let version = queue.map_or(0, |queue| queue.version_id);
    if expected.is_some_and(|expected| expected != version) {
        let resource = "job queue";
        return Err(Error::StaleVersion { resource });
    }
    Ok(())
}

/// Refuses a queue with queued or running jobs.
async fn refuse_in_use(tx: &DatabaseTransaction, name: &str) -> Result<()> {
    let jobs = job::Entity::find()
        .filter(job::Column::QueueName.eq(name))
        .filter(in_status(&[JobStatus::Queued, JobStatus::Running]));
    let count = jobs.clone().count(tx).await?;
    if count == 0 {
        return Ok(());
    }
    let ids: Vec<Uuid> = jobs
        .select_only()
        .column(job::Column::Id)
        .order_by_asc(job::Column::Id)
        .limit(MAX_NAMED_JOBS)
        .into_tuple()
        .all(tx)
        .await?;
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    Err(Error::InUse {
        resource: "job queue",
        users: format!("jobs that are queued or running: {count}"),
        ids: ids.join(","),
    })
}

/// Writes the settings of a queue and records the change in the feed, unless nothing changed.
async fn save(tx: &DatabaseTransaction, mut queue: Model, before: Option<Model>) -> Result<pb::JobQueue> {
    let Some(before) = before else {
        let queue = ActiveModel::from(queue).reset_all().insert(tx).await?;
        return record_change(tx, ChangeKind::Created, queue).await;
    };
    if queue == before {
        return Ok(queue.into());
    }
    queue.updated_at = entity::now().max(before.updated_at);
    queue.version_id = before.version_id + 1;
    let queue = ActiveModel::from(queue).reset_all().update(tx).await?;
    record_change(tx, ChangeKind::Updated, queue).await
}

async fn record_change(tx: &DatabaseTransaction, kind: ChangeKind, queue: Model) -> Result<pb::JobQueue> {
    let queue = pb::JobQueue::from(queue);
    let change = pb::JobQueueChange { kind: kind.into(), job_queue: Some(queue.clone()) };
    let record = topics::record(&queue.name, Update::JobQueue(change));
    feed::record(tx, [record]).await?;
    Ok(queue)
}

fn queue_name(field: &str, name: &str) -> Result<String> {
    check::name(field, name, 1..=100)
}

fn new_settings(name: &str) -> Model {
    let now = entity::now();
    Model {
        name: name.to_string(),
        description: None,
        paused: false,
        paused_at: None,
        paused_by: None,
        pause_reason: None,
        max_running: None,
        max_running_per_key: None,
        created_at: now,
        updated_at: now,
        version_id: 1,
    }
}

impl pb::JobQueue {
    /// Validates and applies the fields covered by the mask.
    fn apply(&self, mask: &UpdateMask, queue: &mut Model) -> Result<()> {
        if mask.covers("description", self.description.is_some()) {
            let text = self.description.as_deref();
            queue.description = check::optional_text("job_queue.description", text, 0..=1_000)?;
        }
        let limit = |field: &str, limit: Option<i32>| {
            let limit = limit.map(|limit| check::within(field, limit, 1..=MAX_RUNNING_LIMIT));
            limit.transpose()
        };
        if mask.covers("max_running", self.max_running.is_some()) {
            queue.max_running = limit("job_queue.max_running", self.max_running)?;
        }
        if mask.covers("max_running_per_key", self.max_running_per_key.is_some()) {
            let per_key = self.max_running_per_key;
            queue.max_running_per_key = limit("job_queue.max_running_per_key", per_key)?;
        }
        Ok(())
    }
}

impl pb::JobQueueFilter {
    fn select(&self, db: &Db) -> Result<Select<Entity>> {
        let name = check::text("filter.name", &self.name, 0..=100)?;
        let mut select = Entity::find();
        if let Some(paused) = self.paused {
            select = select.filter(Column::Paused.eq(paused));
        }
        if !name.is_empty() {
            let name = row::contains(Expr::col(Column::Name), db.backend(), &name);
            select = select.filter(name);
        }
        Ok(select)
    }
}

impl From<Model> for pb::JobQueue {
    fn from(row: Model) -> Self {
        Self {
            name: row.name,
            description: row.description,
            paused: row.paused,
            paused_at: row.paused_at.map(time::to_proto),
            paused_by: row.paused_by,
            pause_reason: row.pause_reason,
            max_running: row.max_running,
            max_running_per_key: row.max_running_per_key,
            created_at: Some(time::to_proto(row.created_at)),
            updated_at: Some(time::to_proto(row.updated_at)),
            version_id: row.version_id,
        }
    }
}

fn to_proto(queue_name: String, paused: bool, stats: QueueStats) -> pb::QueueStats {
    let by_type = |stats: TypeStats| pb::QueueTypeStats {
        job_type: stats.job_type,
        finished: stats.jobs,
        wait_p50: stats.wait_p50,
        wait_p95: stats.wait_p95,
        run_p50: stats.run_p50,
        run_p95: stats.run_p95,
    };
    pb::QueueStats {
        queue_name,
        paused,
        depth: stats.depth,
        scheduled: stats.scheduled,
        running: stats.running,
        oldest_queued_age: stats.oldest_age,
        finished: stats.types.iter().map(|stats| stats.jobs).sum(),
        finished_per_second: stats.finished_per_second,
        by_type: stats.types.into_iter().map(by_type).collect(),
    }
}
