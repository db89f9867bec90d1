//! Deletion of old roll-ups, and of old samples that are rolled up.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::ConnectionTrait;
use tokio_util::sync::CancellationToken;

use super::queries::{MINUTE_MS, try_lock};
use crate::{
    db::{Db, dialect::Sql},
    error::{Chain, Result},
};

/// Time between two deletions.
const INTERVAL: Duration = Duration::from_mins(1);

/// Upper bounds of samples and of roll-ups that one transaction deletes.
const SAMPLES_PER_TRANSACTION: i64 = 1_000;
const ROLLUPS_PER_TRANSACTION: i64 = 500;

/// Time between two transactions for other writers.
const PAUSE: Duration = Duration::from_millis(20);

/// `raw_from` is raised before samples are deleted: from then on the roll-ups of earlier minutes
/// are final. A minute with a mark limits the value. On PostgreSQL, LEAST ignores NULL.
const RAISE: Sql = Sql {
    postgres: "\
        UPDATE gpu_history_state SET raw_from = least($1, (SELECT min(minute) FROM gpu_stats_pending)) \
        WHERE id = 1 AND raw_from < least($1, (SELECT min(minute) FROM gpu_stats_pending))",
    sqlite: "\
        UPDATE gpu_history_state SET raw_from = min($1, coalesce((SELECT min(minute) FROM gpu_stats_pending), $1)) \
        WHERE id = 1 AND raw_from < min($1, coalesce((SELECT min(minute) FROM gpu_stats_pending), $1))",
};

/// One statement reads the marks and deletes, so that it sees the mark of each row it sees.
const DELETE_SAMPLES: Sql = Sql {
    postgres: "\
        DELETE FROM gpu_stats WHERE id IN (SELECT id FROM gpu_stats WHERE recorded_at < \
        (SELECT to_timestamp(60.0 * least($1, raw_from, (SELECT min(minute) FROM gpu_stats_pending))) \
        FROM gpu_history_state) ORDER BY recorded_at, id LIMIT $2)",
    sqlite: "\
        DELETE FROM gpu_stats WHERE id IN (SELECT id FROM gpu_stats WHERE recorded_at < \
        (SELECT strftime('%Y-%m-%dT%H:%M:%S+00:00', 60 * \
        min($1, raw_from, coalesce((SELECT min(minute) FROM gpu_stats_pending), raw_from)), 'unixepoch') \
        FROM gpu_history_state) ORDER BY recorded_at, id LIMIT $2)",
};
const DELETE_ROLLUPS: Sql = Sql::common(
    "\
        DELETE FROM gpu_stats_minutes WHERE (gpu_uuid, minute) IN (\
        SELECT gpu_uuid, minute FROM gpu_stats_minutes WHERE minute < $1 ORDER BY minute LIMIT $2)",
);

/// Retention periods of the history.
#[derive(Debug, Clone, Copy)]
pub struct RetentionPeriods {
    /// Retention of samples.
    pub samples: Duration,
    /// Retention of roll-ups. At least the retention of samples.
    pub rollups: Duration,
}

/// Deletes expired samples and roll-ups every minute, until shutdown.
pub async fn run(db: Db, periods: RetentionPeriods, shutdown: CancellationToken) {
    loop {
        match shutdown.run_until_cancelled(prune(&db, periods)).await {
            Some(Ok((0, 0))) => {}
            Some(Ok((samples, rollups))) => {
                tracing::debug!(samples, rollups, "pruned the history of the GPUs");
            }
            Some(Err(error)) => {
                let error = Chain(&error).to_string();
                tracing::warn!(error, "the history of the GPUs could not be pruned; the next attempt follows in 1 min");
            }
            None => return,
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// Deletes expired samples and roll-ups. Returns the numbers of deleted samples and roll-ups.
pub async fn prune(db: &Db, periods: RetentionPeriods) -> Result<(u64, u64)> {
    let now = crate::clock::for_retention();
    let samples = prune_samples(db, minute_before(now, periods.samples)).await?;
    let rollups = prune_rollups(db, minute_before(now, periods.rollups)).await?;
    Ok((samples, rollups))
}

/// Minute, counted from 1970, at `period` before `now`.
fn minute_before(now: DateTime<Utc>, period: Duration) -> i64 {
    let period = TimeDelta::from_std(period).unwrap_or(TimeDelta::MAX);
    let before = now.checked_sub_signed(period);
    before.map_or(0, |before| before.timestamp_millis().div_euclid(MINUTE_MS))
}

async fn prune_samples(db: &Db, before: i64) -> Result<u64> {
    db.write(async |tx| {
        let raise = RAISE.statement(db.backend(), [before.into()]);
        Ok(tx.execute_raw(raise).await?.rows_affected())
    })
    .await?;
    delete_in_chunks(db, DELETE_SAMPLES, before, SAMPLES_PER_TRANSACTION).await
}

async fn prune_rollups(db: &Db, before: i64) -> Result<u64> {
    delete_in_chunks(db, DELETE_ROLLUPS, before, ROLLUPS_PER_TRANSACTION).await
}

async fn delete_in_chunks(db: &Db, delete: Sql<'_>, before: i64, chunk: i64) -> Result<u64> {
    let mut total = 0;
    loop {
        let deletion = db.write(async |tx| {
            // Two processes that delete the same rows would block each other.
            if !try_lock(tx).await? {
                return Ok(0);
            }
            let statement = delete.statement(db.backend(), [before.into(), chunk.into()]);
            Ok(tx.execute_raw(statement).await?.rows_affected())
        });
        let deleted = deletion.await?;
        total += deleted;
        if deleted < chunk.unsigned_abs() {
            return Ok(total);
        }
        tokio::time::sleep(PAUSE).await;
    }
}
