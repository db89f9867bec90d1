//! Retention of stored rule outcomes. Outcomes are kept for one day for repeated requests.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, Statement};
use tokio_util::sync::CancellationToken;

use crate::{clock, db::Db, error::Result};

/// Retention of outcomes.
const OUTCOME_RETENTION: TimeDelta = TimeDelta::days(1);

/// Interval between runs.
const PERIOD: Duration = Duration::from_mins(5);

/// Largest number of rows that one transaction changes.
const MAX_ROWS_PER_TRANSACTION: u64 = 1_000;

const CLEAR_OUTCOMES: &str = "\
    UPDATE event_ingests SET outcomes = NULL WHERE event_id IN (SELECT event_id FROM event_ingests \
    WHERE created_at >= $1 AND created_at < $2 AND outcomes IS NOT NULL ORDER BY created_at LIMIT $3)";

/// Clears old outcomes periodically until shutdown.
pub async fn run(db: Db, shutdown: CancellationToken) {
    // Rows before this time are already cleared.
    let mut cleared_until = DateTime::UNIX_EPOCH;
    loop {
        let before = clock::for_retention() - OUTCOME_RETENTION;
        match clear_outcomes(&db, cleared_until, before).await {
            Ok(()) => cleared_until = before,
            Err(error) => {
                tracing::warn!(%error, "old ingest outcomes cannot be cleared; retrying");
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

async fn clear_outcomes(db: &Db, cleared_until: DateTime<Utc>, before: DateTime<Utc>) -> Result<()> {
    let values = || [cleared_until.into(), before.into(), MAX_ROWS_PER_TRANSACTION.into()];
    loop {
        let changed = db.write(async |tx| {
            let clear_outcomes = Statement::from_sql_and_values(tx.get_database_backend(), CLEAR_OUTCOMES, values());
            Ok(tx.execute_raw(clear_outcomes).await?.rows_affected())
        });
        if changed.await? < MAX_ROWS_PER_TRANSACTION {
            return Ok(());
        }
    }
}
