//! Forgetting: samples, once they are rolled up, and roll-ups, a few at a time.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbBackend};
use tokio_util::sync::CancellationToken;

use super::{MINUTE, locked, statement};
use crate::{
    db::Db,
    error::{Chain, Result},
};

/// How often to look.
const PERIOD: Duration = Duration::from_mins(1);

/// How many samples, and how many roll-ups, one transaction deletes.
const SAMPLES: i64 = 1_000;
const ROLLUPS: i64 = 500;

/// How long writers have the database to themselves between two of them.
const PAUSE: Duration = Duration::from_millis(20);

/// Says that samples may be gone before it says so of any: from then on their roll-ups are final. A
/// minute that is still to be rolled up holds the line back. On PostgreSQL LEAST passes over NULL.
const RAISE_POSTGRES: &str = "\
    UPDATE gpu_history_state SET raw_from = least($1, (SELECT min(minute) FROM gpu_stats_pending)) \
    WHERE id = 1 AND raw_from < least($2, (SELECT min(minute) FROM gpu_stats_pending))";
const RAISE_SQLITE: &str = "\
    UPDATE gpu_history_state SET raw_from = min($1, coalesce((SELECT min(minute) FROM gpu_stats_pending), $2)) \
    WHERE id = 1 AND raw_from < min($3, coalesce((SELECT min(minute) FROM gpu_stats_pending), $4))";

/// Marks are looked at in the statement that deletes, so that it sees the mark of each row it sees.
const DELETE_POSTGRES: &str = "\
    DELETE FROM gpu_stats WHERE id IN (SELECT id FROM gpu_stats WHERE recorded_at < \
    (SELECT to_timestamp(60.0 * least($1, raw_from, (SELECT min(minute) FROM gpu_stats_pending))) \
    FROM gpu_history_state) ORDER BY recorded_at, id LIMIT $2)";
const DELETE_SQLITE: &str = "\
    DELETE FROM gpu_stats WHERE id IN (SELECT id FROM gpu_stats WHERE recorded_at < \
    (SELECT strftime('%Y-%m-%dT%H:%M:%S+00:00', 60 * \
    min($1, raw_from, coalesce((SELECT min(minute) FROM gpu_stats_pending), raw_from)), 'unixepoch') \
    FROM gpu_history_state) ORDER BY recorded_at, id LIMIT $2)";
const DELETE_ROLLUPS: &str = "\
    DELETE FROM gpu_stats_minutes WHERE (gpu_uuid, minute) IN (\
    SELECT gpu_uuid, minute FROM gpu_stats_minutes WHERE minute < $1 ORDER BY minute LIMIT $2)";

/// How long the history is kept.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Samples as they are.
    pub samples: Duration,
    /// Minute by minute. Not shorter.
    pub rollups: Duration,
}

/// Deletes what is older, again and again, until shutdown.
pub async fn run(db: Db, kept: Kept, shutdown: CancellationToken) {
    loop {
        match shutdown.run_until_cancelled(prune(&db, kept)).await {
            Some(Ok((0, 0))) => {}
            Some(Ok((samples, rollups))) => {
                tracing::debug!(samples, rollups, "pruned the history of the GPUs");
            }
            Some(Err(error)) => {
                let error = Chain(&error).to_string();
                tracing::warn!(
                    error,
                    "the history of the GPUs could not be pruned; it is tried again"
                );
            }
            None => return,
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Deletes what is older. Returns how many samples and how many roll-ups that were.
pub async fn prune(db: &Db, kept: Kept) -> Result<(u64, u64)> {
    let now = crate::clock::for_retention();
    let samples = prune_samples(db, minute_before(now, kept.samples)).await?;
    let rollups = prune_rollups(db, minute_before(now, kept.rollups)).await?;
    Ok((samples, rollups))
}

/// The minute in which it was so long ago.
fn minute_before(now: DateTime<Utc>, kept: Duration) -> i64 {
    let kept = TimeDelta::from_std(kept).unwrap_or(TimeDelta::MAX);
    let before = now.checked_sub_signed(kept);
    before.map_or(0, |before| before.timestamp_millis().div_euclid(MINUTE))
}

async fn prune_samples(db: &Db, before: i64) -> Result<u64> {
    let postgres = db.backend() == DbBackend::Postgres;
    db.write(async |tx| {
        let before = || before.into();
        let raise = if postgres {
            statement(tx, RAISE_POSTGRES, [before(), before()])
        } else {
            statement(tx, RAISE_SQLITE, [before(), before(), before(), before()])
        };
        Ok(tx.execute_raw(raise).await?.rows_affected())
    })
    .await?;
    let delete = if postgres {
        DELETE_POSTGRES
    } else {
        DELETE_SQLITE
    };
    in_chunks(db, delete, before, SAMPLES).await
}

async fn prune_rollups(db: &Db, before: i64) -> Result<u64> {
    in_chunks(db, DELETE_ROLLUPS, before, ROLLUPS).await
}

async fn in_chunks(db: &Db, delete: &str, before: i64, chunk: i64) -> Result<u64> {
    let mut all = 0;
    loop {
        let deleted = db.write(async |tx| {
            // Two that delete the same rows would wait for each other.
            if !locked(tx).await? {
                return Ok(0);
            }
            let delete = statement(tx, delete, [before.into(), chunk.into()]);
            Ok(tx.execute_raw(delete).await?.rows_affected())
        });
        let deleted = deleted.await?;
        all += deleted;
        if deleted < chunk.unsigned_abs() {
            return Ok(all);
        }
        tokio::time::sleep(PAUSE).await;
    }
}
