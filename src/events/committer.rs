//! Group commit: ingests that arrive together share a transaction, and with it the wait for the disk.

use std::{collections::HashSet, sync::Arc};

use sea_orm::DbBackend;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    batch::{self, Answer, Judged},
    check::Ingest,
    counts::Counts,
    replay,
};
use crate::{
    alerts::{engine::live::Rules, lifecycle::deliveries::DeliveryWakeup},
    batch::group_commit::{CALLER_GRACE, Callers},
    db::Db,
    error::{Error, Result},
    rpc::work,
};

/// How many ingests wait at most; a caller beyond that waits for a place among them.
const QUEUE: usize = 1_024;

/// How many ingests share a transaction at most.
const BATCH: usize = 64;

/// How many detections they have together at most, unless a single one has more.
const DETECTIONS: usize = 2_000;

/// How many batches are written at the same time on PostgreSQL: one is being judged, encoded and
/// answered while the other keeps the database busy. SQLite has one writer.
const AT_ONCE_ON_POSTGRES: usize = 2;

/// Work from which an ingest is judged on a thread of its own: comparisons of a detection with a rule or with a corner
/// of a zone, at a few nanoseconds each.
const LONG: usize = 200_000;

/// How often an ingest is tried whose rule was deleted under it.
const TRIES: usize = 3;

type Waiting = (Judged, oneshot::Sender<Answer>);

/// Stores ingests.
#[derive(Debug)]
pub struct Committer {
    callers: Arc<Callers>,
    rules: Rules,
    counts: Counts,
    queue: mpsc::Sender<Waiting>,
}

impl Committer {
    /// Starts committing. What is queued at shutdown is still stored.
    pub fn start(
        db: &Db,
        rules: &Rules,
        wakeup: &DeliveryWakeup,
        shutdown: &CancellationToken,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let callers = Arc::new(Callers::default());
        let counts = Counts::default();
        let work = Arc::new(Work {
            db: db.clone(),
            rules: rules.clone(),
            counts: counts.clone(),
            wakeup: wakeup.clone(),
        });
        tokio::spawn(gather(work, waiting, callers.clone(), shutdown.clone()));
        Self {
            callers,
            rules: rules.clone(),
            counts,
            queue,
        }
    }

    /// What was stored since the start.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Stores an ingest. Returns when it is committed.
    pub(super) async fn store(&self, ingest: Ingest) -> Answer {
        let _caller = self.callers.enter();
        // Judged here, while others are being stored.
        let judged = judge(ingest, &self.rules).await?;
        let (reply, answer) = oneshot::channel();
        self.queue
            .send((judged, reply))
            .await
            .map_err(|_| Error::ShuttingDown)?;
        answer.await.map_err(|_| Error::ShuttingDown)?
    }
}

/// Asks the rules about an ingest. One of much work is judged on a thread of its own.
async fn judge(ingest: Ingest, rules: &Rules) -> Result<Judged> {
    if batch::work(&ingest, rules) < LONG {
        return Ok(batch::judge(ingest, rules));
    }
    let rules = rules.clone();
    work::run_blocking(move || Ok(batch::judge(ingest, &rules))).await
}

/// Gathers ingests while others are being written, and has them written when it is their turn.
async fn gather(
    work: Arc<Work>,
    mut queue: mpsc::Receiver<Waiting>,
    callers: Arc<Callers>,
    shutdown: CancellationToken,
) {
    let at_once = if work.db.backend() == DbBackend::Postgres {
        AT_ONCE_ON_POSTGRES
    } else {
        1
    };
    let turns = Arc::new(Semaphore::new(at_once));
    let mut waiting = Vec::new();
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
        let siblings = (callers.take_peak() / at_once).min(BATCH);
        let until = Instant::now() + CALLER_GRACE;
        while waiting.len() < siblings
            && let Ok(Some(next)) = timeout_at(until, queue.recv()).await
        {
            waiting.push(next);
        }
        let batch = next_batch(&mut waiting);
        tokio::spawn(work.clone().commit(batch, turn));
    }
}

struct Work {
    db: Db,
    rules: Rules,
    counts: Counts,
    wakeup: DeliveryWakeup,
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
                if batch.iter().any(Judged::has_raised) {
                    self.wakeup.notify();
                }
                self.counts.batch(batch.len());
                for ((judged, early), reply) in batch.into_iter().zip(early).zip(replies) {
                    // Whoever asked may have gone.
                    let answer = early.unwrap_or_else(|| Ok(judged.stored()));
                    self.counts.answered(&answer);
                    let _ = reply.send(answer);
                }
            }
            Err(error) if error.is_unavailable() => {
                for reply in replies {
                    let _ = reply.send(Err(error.duplicate()));
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
            let mut judged = [judge(ingest.clone(), &self.rules).await?];
            match self
                .db
                .write(async |tx| batch::store(tx, &mut judged).await)
                .await
            {
                Ok(early) => {
                    let [judged] = judged;
                    if judged.has_raised() {
                        self.wakeup.notify();
                    }
                    let early = early.into_iter().flatten().next();
                    let answer = early.unwrap_or_else(|| Ok(judged.stored()));
                    self.counts.batch(1);
                    self.counts.answered(&answer);
                    return answer;
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
