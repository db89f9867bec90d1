//! Forgetting the outcomes of ingests, which are kept for a day for whoever repeats a request.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, Statement};
use tokio_util::sync::CancellationToken;

use crate::{clock, db::Db, error::Result};

/// How long outcomes are kept.
const KEPT: TimeDelta = TimeDelta::days(1);

/// How often to look.
const PERIOD: Duration = Duration::from_mins(5);

/// How many rows one transaction changes.
const CHUNK: u64 = 1_000;

const FORGET: &str = "\
    UPDATE event_ingests SET outcomes = NULL WHERE event_id IN (SELECT event_id FROM event_ingests \
    WHERE created_at >= $1 AND created_at < $2 AND outcomes IS NOT NULL ORDER BY created_at LIMIT $3)";

/// Forgets, again and again, until shutdown.
pub async fn run(db: Db, shutdown: CancellationToken) {
    // What was looked at before need not be looked at again.
    let mut since = DateTime::UNIX_EPOCH;
    loop {
        let before = clock::for_retention() - KEPT;
        match forget(&db, since, before).await {
            Ok(()) => since = before,
            Err(error) => {
                tracing::warn!(%error, "the outcomes of old ingests could not be forgotten; it is tried again");
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

async fn forget(db: &Db, since: DateTime<Utc>, before: DateTime<Utc>) -> Result<()> {
    let values = || [since.into(), before.into(), CHUNK.into()];
    loop {
        let changed = db.write(async |tx| {
            let forget =
                Statement::from_sql_and_values(tx.get_database_backend(), FORGET, values());
            Ok(tx.execute_raw(forget).await?.rows_affected())
        });
        if changed.await? < CHUNK {
            return Ok(());
        }
    }
}
