//! Stores the samples, in batches and off everybody's path.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    claims::Local,
    queue::{Queue, Row},
    rows::{self, BATCH, Seen},
};
use crate::{
    db::Db,
    error::{Chain, Result},
    gpu::FLUSH_WITHIN,
};

/// How long a sample may wait for others to be stored with.
const WRITE_EVERY: Duration = Duration::from_secs(2);

/// Time after which GPUs are claimed again that another host tells of.
const CLAIM_EVERY: Duration = Duration::from_secs(10);

/// The longest pause between two attempts while the database is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Stores what comes through the queue. When `shutdown` is set, has the samplers stopped and
/// stores the rest, if the database lets it.
pub(crate) async fn run(
    (db, claims): (Db, Local),
    queue: Arc<Queue>,
    shutdown: CancellationToken,
    stop_samplers: impl FnOnce(),
) {
    let mut seen = Seen::default();
    let mut away: Option<Duration> = None;
    let mut claim_at = Instant::now() + CLAIM_EVERY;
    loop {
        let pause = away.unwrap_or(WRITE_EVERY);
        let until = Instant::now() + pause;
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep_until(until) => {}
            () = queue.filled(), if away.is_none() => {}
        }
        match store_all((&db, &claims), &queue, &mut seen, away.is_some()).await {
            Ok(()) => {
                if Instant::now() >= claim_at {
                    claim_at = Instant::now() + CLAIM_EVERY;
                    if let Err(error) = claims.retry(&db).await {
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
                    tracing::warn!(
                        error,
                        "GPU samples cannot be stored; they are kept for ten minutes"
                    );
                }
                away = Some((pause * 2).min(LONGEST_PAUSE));
            }
        }
    }
    stop_samplers();
    let rest = store_all((&db, &claims), &queue, &mut seen, away.is_some());
    let stored = timeout(FLUSH_WITHIN, rest).await;
    if !matches!(stored, Ok(Ok(()))) {
        let lost = queue.len();
        tracing::warn!(lost, "the last GPU samples could not be stored");
    }
}

/// Stores what waits. After a failure nobody knows whether what was stored then is there: a commit may
/// be made whose answer is lost.
async fn store_all(
    (db, claims): (&Db, &Local),
    queue: &Queue,
    seen: &mut Seen,
    mut after_failure: bool,
) -> Result<()> {
    loop {
        let (mut rows, end) = queue.first(BATCH);
        if rows.is_empty() {
            return Ok(());
        }
        if std::mem::take(&mut after_failure) {
            rows::leave_out_stored(db, &mut rows).await?;
        }
        if !rows.is_empty() {
            store(db, claims, &rows, seen).await?;
        }
        queue.remove_up_to(end);
    }
}

/// Stores the rows, and which GPUs they are of, in one transaction. Rows of GPUs that another host tells of
/// are dropped.
async fn store(db: &Db, claims: &Local, rows: &[Row], seen: &mut Seen) -> Result<()> {
    let known = &*seen;
    let (gpus, refused) = db
        .write(async |tx| {
            let uuids = rows.iter().map(|row| row.gpu.uuid.clone());
            let refused = claims.claim(tx, uuids).await?;
            let rows = rows
                .iter()
                .filter(|row| !refused.contains_key(&row.gpu.uuid));
            let rows: Vec<_> = rows.collect();
            let found = rows
                .iter()
                .copied()
                .map(|row| (&row.reading.stats, || row.gpu.clone()));
            let gpus = known.news(found);
            if !rows.is_empty() {
                let stats = rows.iter().map(|row| &row.reading.stats);
                rows::insert(tx, stats, &gpus).await?;
            }
            Ok((gpus, refused))
        })
        .await?;
    seen.remember(gpus);
    claims.refuse(&refused);
    Ok(())
}
