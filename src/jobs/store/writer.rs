//! Where everything is handed in that happens to jobs which exist: what comes at the same time shares a
//! transaction.

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
        wakeups::Bell,
    },
};

/// How many jobs one transaction changes, unless a single task is about more.
const ROOM: usize = 1_000;

/// How many transactions there are at a time on PostgreSQL. What happens to one job always goes to the same of
/// them, so that it happens in the order in which it was handed in.
const SHARDS: usize = 2;

/// How often a transaction is tried that others were chosen over.
const TRIES: usize = 10;

/// Where tasks are handed in. Clones are the same desk.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    shards: Arc<[GroupCommit<Clerk>]>,
}

impl Desk {
    pub(crate) fn start(db: &Db, types: &LiveTypes, bell: &Bell) -> Self {
        let shards = if db.backend() == DbBackend::Postgres {
            SHARDS
        } else {
            1
        };
        let shard = |_| {
            let clerk = Clerk {
                db: db.clone(),
                types: types.clone(),
                bell: bell.clone(),
            };
            // Workers may report for a while after the server was told to shut down.
            GroupCommit::start(Arc::new(clerk), 1, ROOM, CancellationToken::new())
        };
        Self {
            shards: (0..shards).map(shard).collect(),
        }
    }

    /// Has something happen to a job. Returns it as it is then, without payload and result.
    pub(crate) async fn carry_out(&self, id: Uuid, what: Move) -> Result<Model> {
        let job = self.carry_out_all(Task(vec![(id, what)])).await?.pop();
        job.ok_or_else(|| Error::internal("a job of a task is missing"))
    }

    /// Has something happen to several jobs, or to none.
    pub(crate) async fn carry_out_all(&self, task: Task) -> Result<Vec<Model>> {
        self.shard(&task).submit(task).await
    }

    /// Hands in what the holder of a lease reports. What is handed in about a job happens in this order.
    pub(crate) async fn report(
        &self,
        id: Uuid,
        lease_id: Uuid,
        report: Report,
    ) -> Result<oneshot::Receiver<Result<Vec<Model>>>> {
        let task = Task(vec![(id, Move::Report(lease_id, report))]);
        self.shard(&task).enqueue(task).await
    }

    fn shard(&self, task: &Task) -> &GroupCommit<Clerk> {
        let id = task.0.first().map_or(0, |(id, _)| id.as_u128());
        // The last bits of a UUID version 7 are random.
        let shard = usize::try_from(id % self.shards.len() as u128).unwrap_or_default();
        &self.shards[shard]
    }
}

/// Carries tasks out.
#[derive(Debug)]
struct Clerk {
    db: Db,
    types: LiveTypes,
    bell: Bell,
}

impl Clerk {
    async fn carry_out(&self, tasks: &[Task]) -> Result<Vec<Result<Vec<Model>>>> {
        let types = self.types.current();
        let mut tries = 1;
        loop {
            let now = clock::now();
            let tasks = tasks.to_vec();
            let done = self
                .db
                .write(async |tx| apply::carry_out(tx, tasks, &types, now).await)
                .await;
            match done {
                Ok((answers, effects)) => {
                    self.tell(&effects);
                    return Ok(answers);
                }
                Err(Error::Contended) if tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn tell(&self, effects: &Effects) {
        if !effects.queued.is_empty() {
            self.bell.queued(&effects.queued);
        }
        for queue in &effects.freed {
            self.bell.ended(queue);
        }
    }
}

impl Writer for Clerk {
    type Item = Task;
    type Answer = Vec<Model>;

    async fn write(&self, tasks: Vec<Task>) -> Result<Vec<Result<Vec<Model>>>> {
        match self.carry_out(&tasks).await {
            Err(error) if tasks.len() > 1 && !error.is_unavailable() => {
                tracing::debug!(%error, "tasks of jobs failed together; they are tried one by one");
                let mut answers = Vec::with_capacity(tasks.len());
                for task in tasks {
                    let answer = self.carry_out(&[task]).await;
                    let answer = answer.map(|mut answers| answers.pop());
                    answers.push(match answer {
                        Ok(Some(answer)) => answer,
                        Ok(None) => Err(Error::internal("a task has no answer")),
                        Err(error) => Err(error),
                    });
                }
                Ok(answers)
            }
            done => done,
        }
    }

    fn size(task: &Task) -> usize {
        task.0.len()
    }
}
