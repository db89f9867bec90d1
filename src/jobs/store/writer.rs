//! Group commit of job moves: concurrent moves share a transaction.

use std::sync::Arc;

use sea_orm::DbBackend;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::apply::{self, Effects, Task};
use crate::{
    batch::group_commit::{GroupCommit, Writer},
    clock,
    db::Db,
    entity::job::Model,
    error::{Error, Result},
    jobs::{
        state::{Move, Report},
        types::LiveTypes,
        wakeups::Wakeups,
    },
};

/// Maximum number of jobs changed by one transaction, unless a single task has more.
const MAX_JOBS_PER_TRANSACTION: usize = 1_000;

/// Number of concurrent transactions on PostgreSQL. A task goes to the shard of its first job. Tasks of a single job
/// are therefore applied in the order of submission; a task of several jobs is ordered only with tasks of its first
/// job. Row locks keep concurrent shards from changing the same job at once.
const SHARDS: usize = 2;

/// Maximum number of tries of a transaction in conflict with others.
const MAX_TRIES: usize = 10;

/// Writer of job moves. Clones share the shards.
#[derive(Debug, Clone)]
pub(crate) struct JobWriter {
    shards: Arc<[GroupCommit<TaskApplier>]>,
}

impl JobWriter {
    pub(crate) fn start(db: &Db, types: &LiveTypes, wakeups: &Wakeups) -> Self {
        let shard_count = if db.backend() == DbBackend::Postgres { SHARDS } else { 1 };
        let shard = |_| {
            let applier = TaskApplier { db: db.clone(), types: types.clone(), wakeups: wakeups.clone() };
            // Shards outlive the shutdown signal: workers may report during the grace period.
            GroupCommit::start(Arc::new(applier), 1, MAX_JOBS_PER_TRANSACTION, CancellationToken::new())
        };
        Self { shards: (0..shard_count).map(shard).collect() }
    }

    /// Applies a move to a job. Returns the job afterwards, without payload and result.
    pub(crate) async fn apply_move(&self, id: Uuid, job_move: Move) -> Result<Model> {
        let job = self.apply_task(Task(vec![(id, job_move)])).await?.pop();
        job.ok_or_else(|| Error::internal("a job of a task is missing"))
    }

    /// Applies a task: all of its moves, or none. Returns the jobs afterwards, without payload and result.
    pub(crate) async fn apply_task(&self, task: Task) -> Result<Vec<Model>> {
        self.shard(&task).submit(task).await
    }

    /// Submits a report of a lease holder, and returns the receiver of the result. Reports of a job are applied in
    /// the order of submission.
    pub(crate) async fn report(
        &self,
        id: Uuid,
        lease_id: Uuid,
        report: Report,
    ) -> Result<oneshot::Receiver<Result<Vec<Model>>>> {
        let task = Task(vec![(id, Move::Report(lease_id, report))]);
        self.shard(&task).enqueue(task).await
    }

    fn shard(&self, task: &Task) -> &GroupCommit<TaskApplier> {
        let id = task.0.first().map_or(0, |(id, _)| id.as_u128());
        // The last bits of a UUID version 7 are random.
        let shard = usize::try_from(id % self.shards.len() as u128).unwrap_or_default();
        &self.shards[shard]
    }
}

/// Applies tasks and notifies the dispatcher.
#[derive(Debug)]
struct TaskApplier {
    db: Db,
    types: LiveTypes,
    wakeups: Wakeups,
}

impl TaskApplier {
    async fn try_batch(&self, tasks: &[Task]) -> Result<Vec<Result<Vec<Model>>>> {
        let types = self.types.current();
        let mut tries = 1;
        loop {
            let now = clock::now();
            let tasks = tasks.to_vec();
            let result = self.db.write(async |tx| apply::run_tasks(tx, tasks, &types, now).await).await;
            match result {
                Ok((answers, effects)) => {
                    self.notify_dispatcher(&effects);
                    return Ok(answers);
                }
                Err(Error::Contended) if tries < MAX_TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn notify_dispatcher(&self, effects: &Effects) {
        if !effects.queued.is_empty() {
            self.wakeups.notify_queued(&effects.queued);
        }
        for queue in &effects.freed {
            self.wakeups.notify_ended(queue);
        }
    }
}

impl Writer for TaskApplier {
    type Item = Task;
    type Answer = Vec<Model>;

    async fn write(&self, tasks: Vec<Task>) -> Result<Vec<Result<Vec<Model>>>> {
        match self.try_batch(&tasks).await {
            Err(error) if tasks.len() > 1 && !error.is_unavailable() => {
                tracing::debug!(%error, "a batch of job tasks failed; retrying the tasks separately");
                let mut answers = Vec::with_capacity(tasks.len());
                for task in tasks {
                    let result = self.try_batch(&[task]).await;
                    answers.push(match result.map(|mut answers| answers.pop()) {
                        Ok(Some(answer)) => answer,
                        Ok(None) => Err(Error::internal("a task has no answer")),
                        Err(error) => Err(error),
                    });
                }
                Ok(answers)
            }
            result => result,
        }
    }

    fn size(task: &Task) -> usize {
        task.0.len()
    }
}
