//! Group commit: ingests that arrive together share a transaction, and with it the wait for the disk.

use std::{collections::HashSet, sync::Arc, time::Duration};

use sea_orm::DbBackend;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    batch::{self, Answer, Judged},
    check::Ingest,
    replay,
};
use crate::{alerts::rules::Rules, db::Db, error::Error};

/// How many ingests wait at most; a caller beyond that waits for a place among them.
const QUEUE: usize = 1_024;

/// How many ingests share a transaction at most.
const BATCH: usize = 64;

/// How many detections they have together at most, unless a single one has more.
const DETECTIONS: usize = 2_000;

/// How many batches PostgreSQL is given at a time. SQLite has one writer.
const POSTGRES_TURNS: usize = 2;

/// How long to wait for callers whose ingests were committed together just now, and who probably
/// come with their next ones together, too. One who comes alone waits for nobody.
const SIBLINGS: Duration = Duration::from_millis(1);

/// How often an ingest is tried whose rule was deleted under it.
const TRIES: usize = 3;

type Waiting = (Judged, oneshot::Sender<Answer>);

/// Stores ingests.
#[derive(Debug)]
pub struct Committer {
    rules: Rules,
    queue: mpsc::Sender<Waiting>,
}

impl Committer {
    /// Starts committing. What is queued at shutdown is still stored.
    pub fn start(db: &Db, rules: &Rules, shutdown: &CancellationToken) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let work = Work {
            db: db.clone(),
            rules: rules.clone(),
        };
        tokio::spawn(gather(Arc::new(work), waiting, shutdown.clone()));
        Self {
            rules: rules.clone(),
            queue,
        }
    }

    /// Stores an ingest. Returns when it is committed.
    pub(super) async fn store(&self, ingest: Ingest) -> Answer {
        // Judged here, while others are being stored.
        let judged = batch::judge(ingest, self.rules.current());
        let (reply, answer) = oneshot::channel();
        self.queue
            .send((judged, reply))
            .await
            .map_err(|_| Error::ShuttingDown)?;
        answer.await.map_err(|_| Error::ShuttingDown)?
    }
}

/// Gathers ingests while others are being written, and has them written when it is their turn.
async fn gather(work: Arc<Work>, mut queue: mpsc::Receiver<Waiting>, shutdown: CancellationToken) {
    let turns = if work.db.backend() == DbBackend::Postgres {
        POSTGRES_TURNS
    } else {
        1
    };
    let turns = Arc::new(Semaphore::new(turns));
    let (mut waiting, mut size_before) = (Vec::new(), 0);
    loop {
        if waiting.is_empty() {
            tokio::select! {
                biased;
                next = queue.recv() => match next {
                    Some(next) => waiting.push(next),
                    None => return,
                },
                () = shutdown.cancelled(), if !queue.is_closed() => {
                    queue.close();
                    continue;
                }
            }
        }
        let turn = loop {
            tokio::select! {
                biased;
                turn = turns.clone().acquire_owned() => break turn,
                Some(next) = queue.recv(), if waiting.len() < BATCH => waiting.push(next),
            }
        };
        // The semaphore is never closed.
        let Ok(turn) = turn else { return };
        while waiting.len() < BATCH
            && let Ok(next) = queue.try_recv()
        {
            waiting.push(next);
        }
        let siblings = size_before.min(BATCH);
        let until = Instant::now() + SIBLINGS;
        while waiting.len() < siblings
            && let Ok(Some(next)) = timeout_at(until, queue.recv()).await
        {
            waiting.push(next);
        }
        let batch = next_batch(&mut waiting);
        size_before = batch.len();
        tokio::spawn(work.clone().commit(batch, turn));
    }
}

struct Work {
    db: Db,
    rules: Rules,
}

impl Work {
    async fn commit(self: Arc<Self>, batch: Vec<Waiting>, turn: OwnedSemaphorePermit) {
        let (mut batch, replies): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        if batch.is_empty() {
            return;
        }
        let stored = self
            .db
            .write(async |tx| batch::store(tx, &mut batch).await)
            .await;
        match stored {
            Ok(early) => {
                // The next batch can be written while this one is answered.
                drop(turn);
                for ((judged, early), reply) in batch.into_iter().zip(early).zip(replies) {
                    // Whoever asked may have gone.
                    let _ = reply.send(early.unwrap_or_else(|| Ok(judged.stored())));
                }
            }
            Err(Error::DatabaseAway) => {
                for reply in replies {
                    let _ = reply.send(Err(Error::DatabaseAway));
                }
            }
            Err(error) => {
                let ingests = batch.len();
                tracing::debug!(%error, ingests, "a batch failed; its ingests are tried one by one");
                for (judged, reply) in batch.into_iter().zip(replies) {
                    let _ = reply.send(self.commit_alone(judged.ingest).await);
                }
            }
        }
    }

    /// So that an ingest fails by what is wrong with itself only.
    async fn commit_alone(&self, ingest: Ingest) -> Answer {
        let mut tries = 1;
        loop {
            let mut judged = [batch::judge(ingest.clone(), self.rules.current())];
            match self
                .db
                .write(async |tx| batch::store(tx, &mut judged).await)
                .await
            {
                Ok(early) => {
                    let [judged] = judged;
                    return early
                        .into_iter()
                        .flatten()
                        .next()
                        .unwrap_or_else(|| Ok(judged.stored()));
                }
                // A rule was deleted, or the same request is being stored by another process.
                Err(
                    Error::BrokenReference { .. } | Error::AlreadyExists { .. } | Error::Contended,
                ) if tries < TRIES => {
                    self.rules.reload().await?;
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Takes what can share a transaction. Repetitions of a request in it must wait for the next one,
/// which sees it stored.
fn next_batch(waiting: &mut Vec<Waiting>) -> Vec<Waiting> {
    let (mut batch, mut later) = (Vec::new(), Vec::new());
    let (mut keys, mut detections) = (HashSet::new(), 0);
    for (judged, reply) in waiting.drain(..) {
        if reply.is_closed() {
            // The caller has gone, and nothing was stored yet.
            continue;
        }
        let ingest = &judged.ingest;
        let full = detections > 0 && detections + ingest.detections.len() > DETECTIONS;
        if full || replay::share_a_key(ingest, &mut keys) {
            later.push((judged, reply));
        } else {
            detections += ingest.detections.len();
            batch.push((judged, reply));
        }
    }
    *waiting = later;
    batch
}
