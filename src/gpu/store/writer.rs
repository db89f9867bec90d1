//! Task that stores samples in batches.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    claims::LocalClaims,
    queue::{MAX_SAMPLES_PER_BATCH, QueuedSample, SampleQueue},
    rows::{self, WrittenGpus},
};
use crate::{
    db::Db,
    error::{Chain, Result},
    gpu::settings::FLUSH_TIMEOUT,
};

/// Longest time that a sample waits for further samples of a batch.
const WRITE_INTERVAL: Duration = Duration::from_secs(2);

/// Time between two attempts to claim GPUs that another host reports.
const CLAIM_RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Longest pause between two attempts while the database is away.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Stores queued samples until `shutdown`. Then stops the samplers, and stores the rest if the
/// database allows.
pub(crate) async fn run(
    (db, claims): (Db, LocalClaims),
    queue: Arc<SampleQueue>,
    shutdown: CancellationToken,
    stop_samplers: impl FnOnce(),
) {
    let mut written_gpus = WrittenGpus::default();
    let mut away: Option<Duration> = None;
    let mut claim_at = Instant::now() + CLAIM_RETRY_INTERVAL;
    loop {
        let pause = away.unwrap_or(WRITE_INTERVAL);
        let until = Instant::now() + pause;
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep_until(until) => {}
            () = queue.batch_ready(), if away.is_none() => {}
        }
        match store_all((&db, &claims), &queue, &mut written_gpus, away.is_some()).await {
            Ok(()) => {
                if Instant::now() >= claim_at {
                    claim_at = Instant::now() + CLAIM_RETRY_INTERVAL;
                    if let Err(error) = claims.retry_conflicts(&db).await {
                        tracing::debug!(%error, "GPUs could not be claimed again");
                    }
                }
                let dropped = queue.take_dropped();
                if away.take().is_some() {
                    tracing::info!(dropped, "GPU samples are stored again");
                }
            }
            Err(error) => {
                if away.is_none() {
                    let error = Chain(&error).to_string();
                    tracing::warn!(error, "GPU samples cannot be stored; they are kept for ten minutes");
                }
                away = Some((pause * 2).min(MAX_PAUSE));
            }
        }
    }
    stop_samplers();
    let rest = store_all((&db, &claims), &queue, &mut written_gpus, away.is_some());
    let stored = timeout(FLUSH_TIMEOUT, rest).await;
    if !matches!(stored, Ok(Ok(()))) {
        let lost = queue.len();
        tracing::warn!(lost, "the last GPU samples could not be stored");
    }
}

/// Stores all queued samples. After a failure, samples that are stored already are skipped, because
/// the answer to a successful commit may have been lost.
async fn store_all(
    (db, claims): (&Db, &LocalClaims),
    queue: &SampleQueue,
    written_gpus: &mut WrittenGpus,
    mut after_failure: bool,
) -> Result<()> {
    loop {
        let (mut rows, end) = queue.peek(MAX_SAMPLES_PER_BATCH);
        if rows.is_empty() {
            return Ok(());
        }
        if std::mem::take(&mut after_failure) {
            rows::retain_unstored(db, &mut rows).await?;
        }
        if !rows.is_empty() {
            store(db, claims, &rows, written_gpus).await?;
        }
        queue.remove_up_to(end);
    }
}

/// Stores the samples and the facts about their GPUs in one transaction. Samples of GPUs that
/// another host reports are dropped.
async fn store(db: &Db, claims: &LocalClaims, rows: &[QueuedSample], written_gpus: &mut WrittenGpus) -> Result<()> {
    let cache = &*written_gpus;
    let (updates, conflicts) = db
        .write(async |tx| {
            let uuids = rows.iter().map(|row| row.gpu.uuid.clone());
            let conflicts = claims.claim(tx, uuids).await?;
            let accepted: Vec<_> = rows.iter().filter(|row| !conflicts.contains_key(&row.gpu.uuid)).collect();
            let stored_samples = accepted.iter().copied().map(|row| (&row.reading.stats, || row.gpu.clone()));
            let updates = cache.updates(stored_samples);
            if !accepted.is_empty() {
                let stats = accepted.iter().map(|row| &row.reading.stats);
                rows::insert(tx, stats, &updates).await?;
            }
            Ok((updates, conflicts))
        })
        .await?;
    written_gpus.remember(updates);
    claims.apply_conflicts(&conflicts);
    Ok(())
}
