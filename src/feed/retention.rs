//! Forgetting: changes older than the retention are deleted, a few at a time.

use std::time::Duration;

use chrono::TimeDelta;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, Statement};
use tokio_util::sync::CancellationToken;

use super::Position;
use crate::{db::Db, entity, error::Result};

/// How often to look.
const PERIOD: Duration = Duration::from_mins(1);

/// How many changes one transaction deletes.
const CHUNK: u64 = 1_000;

const DELETE_POSTGRES: &str = "\
    DELETE FROM changes WHERE (xid, seq) IN (SELECT xid, seq FROM changes \
    WHERE created_at < $1 AND xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY xid, seq LIMIT $2) \
    RETURNING xid::text::bigint AS xid, seq";
const DELETE_SQLITE: &str = "\
    DELETE FROM changes WHERE seq IN (SELECT seq FROM changes WHERE created_at < $1 ORDER BY seq LIMIT $2) \
    RETURNING 0 AS xid, seq";
const REMEMBER: &str = "\
    UPDATE feed_state SET pruned_count = pruned_count + $1, \
    pruned_xid = CASE WHEN (pruned_xid, pruned_seq) < ($2, $3) THEN $2 ELSE pruned_xid END, \
    pruned_seq = CASE WHEN (pruned_xid, pruned_seq) < ($2, $3) THEN $3 ELSE pruned_seq END";

/// Deletes what is older than `kept`, again and again, until shutdown.
pub async fn run(db: Db, kept: Duration, shutdown: CancellationToken) {
    let kept = TimeDelta::from_std(kept).unwrap_or(TimeDelta::MAX);
    loop {
        match prune(&db, kept).await {
            Ok(0) => {}
            Ok(deleted) => tracing::debug!(deleted, "pruned the change feed"),
            Err(error) => {
                tracing::warn!(%error, "the change feed could not be pruned; it is tried again");
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Deletes the changes that are older than `kept`. Returns how many they were.
pub async fn prune(db: &Db, kept: TimeDelta) -> Result<u64> {
    let before = entity::now() - kept;
    let mut all = 0;
    loop {
        let deleted = db.write(async |tx| chunk(tx, before).await).await?;
        all += deleted;
        if deleted < CHUNK {
            return Ok(all);
        }
        tokio::task::yield_now().await;
    }
}

async fn chunk(tx: &DatabaseTransaction, before: chrono::DateTime<chrono::Utc>) -> Result<u64> {
    let backend = tx.get_database_backend();
    let sql = if backend == DbBackend::Postgres {
        DELETE_POSTGRES
    } else {
        DELETE_SQLITE
    };
    let rows = tx
        .query_all_raw(Statement::from_sql_and_values(
            backend,
            sql,
            [before.into(), CHUNK.into()],
        ))
        .await?;
    let mut last = Position::default();
    for row in &rows {
        last = last.max(Position {
            xid: row.try_get("", "xid")?,
            seq: row.try_get("", "seq")?,
        });
    }
    if !rows.is_empty() {
        let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        let values = [count.into(), last.xid.into(), last.seq.into()];
        tx.execute_raw(Statement::from_sql_and_values(backend, REMEMBER, values))
            .await?;
    }
    Ok(rows.len() as u64)
}
