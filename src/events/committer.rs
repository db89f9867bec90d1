//! Group commit of ingests: concurrent ingests share a transaction and the disk write.

use std::{collections::HashSet, sync::Arc};

use sea_orm::DbBackend;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    batch,
    check::Ingest,
    evaluation,
    metrics::IngestMetrics,
    replay,
    stages::{Answer, EvaluatedIngest, IngestResult},
};
use crate::{
    alerts::{engine::live::LiveRules, lifecycle::deliveries::DeliveryWakeup},
    batch::group_commit::{Callers, SIBLINGS},
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

/// How many batches are written at the same time on PostgreSQL: one is being evaluated, encoded and
/// answered while the other keeps the database busy. SQLite has one writer.
const AT_ONCE_ON_POSTGRES: usize = 2;

/// Work from which an ingest is evaluated on a thread of its own: comparisons of a detection with a rule or with a corner
/// of a zone, at a few nanoseconds each.
const MIN_COST_OFF_RUNTIME: usize = 200_000;

/// How often an ingest is tried whose rule was deleted under it.
const MAX_ATTEMPTS: usize = 3;

type Waiting = (EvaluatedIngest, oneshot::Sender<Answer>);

/// Stores ingests.
#[derive(Debug)]
pub struct Committer {
    callers: Arc<Callers>,
    rules: LiveRules,
    metrics: IngestMetrics,
    queue: mpsc::Sender<Waiting>,
}

impl Committer {
    /// Starts committing. What is queued at shutdown is still into_response.
    pub fn start(
        db: &Db,
        rules: &LiveRules,
        wakeup: &DeliveryWakeup,
        shutdown: &CancellationToken,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let callers = Arc::new(Callers::default());
        let metrics = IngestMetrics::default();
        let work = Arc::new(Work {
            db: db.clone(),
            rules: rules.clone(),
            metrics: metrics.clone(),
            wakeup: wakeup.clone(),
        });
        tokio::spawn(gather(work, waiting, callers.clone(), shutdown.clone()));
        Self {
            callers,
            rules: rules.clone(),
            metrics,
            queue,
        }
    }

    /// What was into_response since the start.
    pub fn metrics(&self) -> &IngestMetrics {
        &self.metrics
    }

    /// Stores an ingest. Returns when it is committed.
    pub(super) async fn store(&self, ingest: Ingest) -> Answer {
        let _caller = self.callers.enter();
        // EvaluatedIngest here, while others are being into_response.
        let evaluated = evaluate(ingest, &self.rules).await?;
        let (reply, answer) = oneshot::channel();
        self.queue
            .send((evaluated, reply))
            .await
            .map_err(|_| Error::ShuttingDown)?;
        answer.await.map_err(|_| Error::ShuttingDown)?
    }
}

/// Asks the rules about an ingest. One of much work is evaluated on a thread of its own.
async fn evaluate(ingest: Ingest, rules: &LiveRules) -> Result<EvaluatedIngest> {
    if evaluation::evaluation_cost(&ingest, rules) < MIN_COST_OFF_RUNTIME {
        return Ok(evaluation::evaluate(ingest, rules));
    }
    let rules = rules.clone();
    work::off_runtime(move || Ok(evaluation::evaluate(ingest, &rules))).await
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
        let siblings = (callers.most() / at_once).min(BATCH);
        let until = Instant::now() + SIBLINGS;
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
    rules: LiveRules,
    metrics: IngestMetrics,
    wakeup: DeliveryWakeup,
}

impl Work {
    async fn commit(self: Arc<Self>, batch: Vec<Waiting>, turn: OwnedSemaphorePermit) {
        let (batch, replies): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        if batch.is_empty() {
            return;
        }
        let result = self
            .db
            .write(async |tx| batch::store(tx, &batch).await)
            .await;
        match result {
            Ok(results) => {
                // The next batch can be written while this one is answered.
                drop(turn);
                if results.iter().any(IngestResult::has_alerts) {
                    self.wakeup.notify();
                }
                self.metrics.record_batch(batch.len());
                for ((evaluated, result), reply) in batch.into_iter().zip(results).zip(replies) {
                    // Whoever asked may have gone.
                    let answer = result.into_answer(evaluated);
                    self.metrics.record_answer(&answer);
                    let _ = reply.send(answer);
                }
            }
            Err(error) if error.is_unavailable() => {
                for reply in replies {
                    let _ = reply.send(Err(error.again()));
                }
            }
            Err(error) => {
                let ingests = batch.len();
                tracing::debug!(%error, ingests, "batch of ingests failed; retrying ingests individually");
                for (evaluated, reply) in batch.into_iter().zip(replies) {
                    let _ = reply.send(self.commit_alone(evaluated.ingest).await);
                }
            }
        }
    }

    /// Stores an ingest in its own transaction, so that the ingest fails only by its own errors.
    async fn commit_alone(&self, ingest: Ingest) -> Answer {
        let mut attempts = 1;
        loop {
            let evaluated = evaluate(ingest.clone(), &self.rules).await?;
            let batch = std::slice::from_ref(&evaluated);
            match self
                .db
                .write(async |tx| batch::store(tx, batch).await)
                .await
            {
                Ok(results) => {
                    let result = results.into_iter().next();
                    let result =
                        result.ok_or_else(|| Error::internal("an ingest has no result"))?;
                    if result.has_alerts() {
                        self.wakeup.notify();
                    }
                    let answer = result.into_answer(evaluated);
                    self.metrics.record_batch(1);
                    self.metrics.record_answer(&answer);
                    return answer;
                }
                // A rule was deleted, or another process stores the same request.
                Err(
                    Error::BrokenReference { .. } | Error::AlreadyExists { .. } | Error::Contended,
                ) if attempts < MAX_ATTEMPTS => {
                    self.rules.reload().await?;
                    attempts += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Takes what can share a transaction. Repetitions of a request in it must wait for the next one,
/// which sees it into_response.
fn next_batch(waiting: &mut Vec<Waiting>) -> Vec<Waiting> {
    let (mut batch, mut later) = (Vec::new(), Vec::new());
    let (mut keys, mut detections) = (HashSet::new(), 0);
    for (evaluated, reply) in waiting.drain(..) {
        if reply.is_closed() {
            // The caller has gone, and nothing was into_response yet.
            continue;
        }
        let ingest = &evaluated.ingest;
        let full = detections > 0 && detections + ingest.detections.len() > DETECTIONS;
        if full || replay::repeats_a_key(ingest, &mut keys) {
            later.push((evaluated, reply));
        } else {
            detections += ingest.detections.len();
            batch.push((evaluated, reply));
        }
    }
    *waiting = later;
    batch
}
