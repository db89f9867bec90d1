//! `JobQueueService`.

use std::collections::BTreeMap;

use prost::Message;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, EntityTrait, PaginatorTrait, QueryFilter,
    QueryOrder, QuerySelect, Select, sea_query::Expr,
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
    feed::{self, Record, Topic},
    jobs::{
        query::{
            filter::in_status,
            stats::{self, TypeStats},
        },
        queue::Queue,
        wakeups::Bell,
    },
    pb::{self, ChangeKind, job_queue_service_server::JobQueueService, watch_response::Update},
    rpc::{Reply, check, mask::UpdateMask, page::Page, time},
};

/// The fields that an Update may change.
const UPDATABLE: [&str; 3] = ["description", "max_running", "max_running_per_key"];

/// The highest limit.
const MOST_RUNNING: i32 = 1_000_000;

/// How many queues are told of at most.
const TOLD: usize = 1_000;

/// How many jobs are named that keep a queue in use.
const NAMED: u64 = 20;

/// The settings of queues.
#[derive(Debug, Clone)]
pub struct JobQueues {
    db: Db,
    /// Rung when settings change, so that they are in force for what is claimed afterwards.
    bell: Bell,
}

#[tonic::async_trait]
impl JobQueueService for JobQueues {
    async fn get_job_queue(&self, request: Request<pb::GetJobQueueRequest>) -> Reply<pb::JobQueue> {
        let name = queue_name("name", &request.into_inner().name)?;
        let queue = Entity::find_by_id(&name).one(self.db.reader()).await;
        let queue = queue.map_err(Error::from)?;
        Ok(Response::new(
            row::require(queue, "job queue", name)?.into(),
        ))
    }

    async fn list_job_queues(
        &self,
        request: Request<pb::ListJobQueuesRequest>,
    ) -> Reply<pb::ListJobQueuesResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let (size, token) = (request.page_size, &request.page_token);
        let page = Page::parse(size, token, "job_queues", &filter)?;
        let select = filter.select(&self.db)?;
        let rows = page.by_id(self.db.reader(), select, Column::Name).await?;
        let key = |queue: &Model| (0, queue.name.clone());
        let (job_queues, next_page_token) = page.paginate(rows, key, pb::JobQueue::from);
        Ok(Response::new(pb::ListJobQueuesResponse {
            job_queues,
            next_page_token,
        }))
    }

    async fn update_job_queue(
        &self,
        request: Request<pb::UpdateJobQueueRequest>,
    ) -> Reply<pb::JobQueue> {
        let request = request.into_inner();
        let changes = request
            .job_queue
            .ok_or_else(|| Error::invalid("job_queue", "is required"))?;
        let name = queue_name("job_queue.name", &changes.name)?;
        let mask = UpdateMask::parse(request.update_mask, &UPDATABLE)?;
        let queue = self
            .change(&name, request.expected_version_id, |queue| {
                changes.apply(&mask, queue)
            })
            .await?;
        Ok(Response::new(queue))
    }

    async fn pause_job_queue(
        &self,
        request: Request<pb::PauseJobQueueRequest>,
    ) -> Reply<pb::JobQueue> {
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

    async fn resume_job_queue(
        &self,
        request: Request<pb::ResumeJobQueueRequest>,
    ) -> Reply<pb::JobQueue> {
        let name = queue_name("name", &request.into_inner().name)?;
        let queue = self.db.write(async |tx| {
            let before = row::require(locked(tx, &name).await?, "job queue", &name)?;
            let mut queue = before.clone();
            queue.paused = false;
            queue.paused_at = None;
            queue.paused_by = None;
            queue.pause_reason = None;
            store(tx, queue, Some(before)).await
        });
        let queue = queue.await?;
        self.bell.freed(&name);
        Ok(Response::new(queue))
    }

    async fn delete_job_queue(&self, request: Request<pb::DeleteJobQueueRequest>) -> Reply<()> {
        let request = request.into_inner();
        let name = queue_name("name", &request.name)?;
        let deleted = self.db.write(async |tx| {
            let queue = row::require(locked(tx, &name).await?, "job queue", &name)?;
            refuse_stale(Some(&queue), request.expected_version_id)?;
            refuse_used(tx, &name).await?;
            Entity::delete_by_id(&name).exec(tx).await?;
            announce(tx, ChangeKind::Deleted, queue).await
        });
        deleted.await?;
        self.bell.freed(&name);
        Ok(Response::new(()))
    }

    async fn get_queue_stats(
        &self,
        request: Request<pb::GetQueueStatsRequest>,
    ) -> Reply<pb::GetQueueStatsResponse> {
        let request = request.into_inner();
        let name = check::text("queue_name", &request.queue_name, 0..=100)?;
        let name = Some(name.as_str()).filter(|name| !name.is_empty());
        let window = stats::window(request.window)?;
        let mut queues = stats::of_queue(&self.db, name, window, clock::now()).await?;
        let paused = self.paused(name).await?;
        for name in paused.keys() {
            queues.entry(name.clone()).or_default();
        }
        let queue = |(name, of): (String, stats::QueueStats)| {
            let paused = paused.get(&name).copied().unwrap_or_default();
            queue_stats(name, paused, of)
        };
        let queues = queues.into_iter().take(TOLD).map(queue).collect();
        Ok(Response::new(pb::GetQueueStatsResponse { queues }))
    }
}

impl JobQueues {
    /// The settings of this queue's database.
    pub fn new(queue: &Queue) -> Self {
        Self {
            db: queue.db.clone(),
            bell: queue.bell.clone(),
        }
    }

    /// Changes the settings of a queue; where there are none, makes some.
    async fn change(
        &self,
        name: &str,
        expected: Option<i32>,
        change: impl Fn(&mut Model) -> Result<()>,
    ) -> Result<pb::JobQueue> {
        let attempt = || {
            self.db.write(async |tx| {
                let before = locked(tx, name).await?;
                refuse_stale(before.as_ref(), expected)?;
                let mut queue = before.clone().unwrap_or_else(|| without_settings(name));
                change(&mut queue)?;
                store(tx, queue, before).await
            })
        };
        let queue = match attempt().await {
            // Somebody else made settings at the same time, which are found now.
            Err(Error::AlreadyExists { .. }) => attempt().await,
            done => done,
        }?;
        self.bell.freed(name);
        Ok(queue)
    }

    /// Whether the queues are paused that have settings, or this one.
    async fn paused(&self, name: Option<&str>) -> Result<BTreeMap<String, bool>> {
        let mut select = Entity::find();
        if let Some(name) = name {
            select = select.filter(Column::Name.eq(name));
        }
        let paused: Vec<(String, bool)> = select
            .select_only()
            .columns([Column::Name, Column::Paused])
            .into_tuple()
            .all(self.db.reader())
            .await?;
        Ok(paused.into_iter().collect())
    }
}

/// The settings of a queue; nobody else changes them before the transaction ends.
async fn locked(tx: &DatabaseTransaction, name: &str) -> Result<Option<Model>> {
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

/// Refuses to delete the settings of a queue that has work to do.
async fn refuse_used(tx: &DatabaseTransaction, name: &str) -> Result<()> {
    let jobs = job::Entity::find()
        .filter(job::Column::QueueName.eq(name))
        .filter(in_status(&[JobStatus::Queued, JobStatus::Running]));
    let all = jobs.clone().count(tx).await?;
    if all == 0 {
        return Ok(());
    }
    let ids: Vec<Uuid> = jobs
        .select_only()
        .column(job::Column::Id)
        .order_by_asc(job::Column::Id)
        .limit(NAMED)
        .into_tuple()
        .all(tx)
        .await?;
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    Err(Error::InUse {
        resource: "job queue",
        users: format!("jobs that are queued or running: {all}"),
        ids: ids.join(","),
    })
}

/// Writes the settings of a queue and announces them, if they are new.
async fn store(
    tx: &DatabaseTransaction,
    mut queue: Model,
    before: Option<Model>,
) -> Result<pb::JobQueue> {
    let Some(before) = before else {
        let queue = ActiveModel::from(queue).reset_all().insert(tx).await?;
        return announce(tx, ChangeKind::Created, queue).await;
    };
    if queue == before {
        return Ok(queue.into());
    }
    queue.updated_at = entity::now().max(before.updated_at);
    queue.version_id = before.version_id + 1;
    let queue = ActiveModel::from(queue).reset_all().update(tx).await?;
    announce(tx, ChangeKind::Updated, queue).await
}

async fn announce(
    tx: &DatabaseTransaction,
    kind: ChangeKind,
    queue: Model,
) -> Result<pb::JobQueue> {
    let queue = pb::JobQueue::from(queue);
    let change = pb::JobQueueChange {
        kind: kind.into(),
        job_queue: Some(queue.clone()),
    };
    let message = pb::WatchResponse {
        update: Some(Update::JobQueue(change)),
        ..Default::default()
    };
    let record = Record {
        topic: Topic::JobQueues,
        key: queue.name.clone(),
        message: message.encode_to_vec(),
    };
    feed::record(tx, [record]).await?;
    Ok(queue)
}

fn queue_name(field: &str, name: &str) -> Result<String> {
    check::name(field, name, 1..=100)
}

fn without_settings(name: &str) -> Model {
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
    /// Changes the settings that the mask covers to what this says, checked.
    fn apply(&self, mask: &UpdateMask, queue: &mut Model) -> Result<()> {
        if mask.covers("description", self.description.is_some()) {
            let text = self.description.as_deref();
            queue.description = check::optional_text("job_queue.description", text, 0..=1_000)?;
        }
        let limit = |field: &str, limit: Option<i32>| {
            let limit = limit.map(|limit| check::within(field, limit, 1..=MOST_RUNNING));
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

fn queue_stats(queue_name: String, paused: bool, of: stats::QueueStats) -> pb::QueueStats {
    let by_type = |of: TypeStats| pb::QueueTypeStats {
        job_type: of.job_type,
        finished: of.jobs,
        wait_p50: of.wait_p50,
        wait_p95: of.wait_p95,
        run_p50: of.run_p50,
        run_p95: of.run_p95,
    };
    pb::QueueStats {
        queue_name,
        paused,
        depth: of.depth,
        scheduled: of.scheduled,
        running: of.running,
        oldest_queued_age: of.oldest_age,
        finished: of.types.iter().map(|of| of.jobs).sum(),
        finished_per_second: of.finished_per_second,
        by_type: of.types.into_iter().map(by_type).collect(),
    }
}
