//! Group commit of ingests: concurrent ingests share a transaction and the disk write.

use std::sync::Arc;

use sea_orm::DbBackend;
use tokio_util::sync::CancellationToken;

use super::{
    batch, evaluation,
    metrics::IngestMetrics,
    replay,
    stages::{Answer, EvaluatedIngest, IngestResult},
};
use crate::{
    alerts::{engine::live::LiveRules, lifecycle::deliveries::DeliveryWakeup},
    batch::group_commit::{GroupCommit, Key, Writer},
    db::Db,
    error::{Error, Result},
    events::check::Ingest,
    rpc::work,
};

/// Largest number of ingests per transaction.
const MAX_INGESTS: usize = 64;

/// Size of an ingest with few detections. With more detections, an ingest counts once per detection.
const MIN_INGEST_SIZE: usize = 31;

/// Largest size of a group: 64 ingests with few detections, or 1,984 detections. A single ingest may
/// be larger.
const MAX_GROUP_SIZE: usize = MAX_INGESTS * MIN_INGEST_SIZE;

/// Number of concurrent transactions on PostgreSQL: one is prepared while another keeps the
/// database busy. SQLite has one writer.
const MAX_POSTGRES_GROUPS: usize = 2;

/// Cost from which an ingest is evaluated on a blocking thread, in comparisons of a few nanoseconds.
const MIN_COST_OFF_RUNTIME: usize = 200_000;

/// Number of attempts for an ingest whose rule is deleted during the write.
const MAX_ATTEMPTS: usize = 3;

/// Queue of ingests to be stored.
#[derive(Debug)]
pub struct Committer {
    group: GroupCommit<IngestWriter>,
    rules: LiveRules,
    metrics: IngestMetrics,
}

/// Writes groups of ingests.
#[derive(Debug)]
struct IngestWriter {
    db: Db,
    rules: LiveRules,
    metrics: IngestMetrics,
    wakeup: DeliveryWakeup,
}

/// Committed ingest. The caller builds the response, so that the next group need not wait for it.
type Committed = (EvaluatedIngest, IngestResult);

impl Committer {
    /// Starts the group commit. Ingests that are queued at shutdown are still stored.
    pub fn start(db: &Db, rules: &LiveRules, wakeup: &DeliveryWakeup, shutdown: &CancellationToken) -> Self {
        let metrics = IngestMetrics::default();
        let writer =
            IngestWriter { db: db.clone(), rules: rules.clone(), metrics: metrics.clone(), wakeup: wakeup.clone() };
        let max_groups = if db.backend() == DbBackend::Postgres { MAX_POSTGRES_GROUPS } else { 1 };
        let shutdown = shutdown.clone();
        Self {
            group: GroupCommit::start(Arc::new(writer), max_groups, MAX_GROUP_SIZE, shutdown),
            rules: rules.clone(),
            metrics,
        }
    }

    /// Metrics of the stored ingests.
    pub fn metrics(&self) -> &IngestMetrics {
        &self.metrics
    }

    /// Stores an ingest. Returns after the commit.
    pub(crate) async fn store(&self, ingest: Ingest) -> Answer {
        let _caller = self.group.enter();
        // Evaluated before queueing, in parallel with the writes of other ingests.
        let evaluated = evaluate(ingest, &self.rules).await?;
        let committed = self.group.enqueue(evaluated).await?;
        let (evaluated, result) = committed.await.map_err(|_| Error::ShuttingDown)??;
        result.into_answer(evaluated)
    }
}

/// Evaluates the rules for an ingest, on a blocking thread if the cost is high.
async fn evaluate(ingest: Ingest, rules: &LiveRules) -> Result<EvaluatedIngest> {
    if evaluation::evaluation_cost(&ingest, rules) < MIN_COST_OFF_RUNTIME {
        return Ok(evaluation::evaluate(ingest, rules));
    }
    let rules = rules.clone();
    work::run_blocking(move || Ok(evaluation::evaluate(ingest, &rules))).await
}

impl Writer for IngestWriter {
    type Item = EvaluatedIngest;
    type Answer = Committed;

    const DROPS_CANCELLED: bool = true;

    async fn write(&self, batch: Vec<EvaluatedIngest>) -> Result<Vec<Result<Committed>>> {
        match self.store(&batch).await {
            Ok(results) => Ok(batch.into_iter().zip(results).map(Ok).collect()),
            Err(error) if error.is_unavailable() => Err(error),
            Err(error) => {
                let ingests = batch.len();
                tracing::debug!(%error, ingests, "batch of ingests failed; retrying ingests individually");
                let mut answers = Vec::with_capacity(ingests);
                for evaluated in batch {
                    answers.push(self.store_alone(evaluated.ingest).await);
                }
                Ok(answers)
            }
        }
    }

    fn size(evaluated: &EvaluatedIngest) -> usize {
        evaluated.ingest.detections.len().max(MIN_INGEST_SIZE)
    }

    fn keys(evaluated: &EvaluatedIngest) -> Vec<Key> {
        replay::keys(&evaluated.ingest)
    }
}

impl IngestWriter {
    async fn store(&self, batch: &[EvaluatedIngest]) -> Result<Vec<IngestResult>> {
        let results = self.db.write(async |tx| batch::store(tx, batch).await).await?;
        if results.iter().any(IngestResult::has_alerts) {
            self.wakeup.notify();
        }
        self.metrics.record_batch(&results);
        Ok(results)
    }

    /// Stores an ingest in its own transaction, so that the ingest fails only by its own errors.
    async fn store_alone(&self, ingest: Ingest) -> Result<Committed> {
        let mut attempts = 1;
        loop {
            let evaluated = evaluate(ingest.clone(), &self.rules).await?;
            match self.store(std::slice::from_ref(&evaluated)).await {
                Ok(results) => {
                    let result =
                        results.into_iter().next().ok_or_else(|| Error::internal("an ingest has no result"))?;
                    return Ok((evaluated, result));
                }
                // A rule was deleted, or another process stores the same request.
                Err(Error::BrokenReference { .. } | Error::AlreadyExists { .. } | Error::Contended)
                    if attempts < MAX_ATTEMPTS =>
                {
                    self.rules.reload().await?;
                    attempts += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
