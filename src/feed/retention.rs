//! Retention of the feed: changes beyond the maximum age or number are deleted in small
//! transactions.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, EntityTrait, PaginatorTrait};
use tokio_util::sync::CancellationToken;

use super::Position;
use crate::{
    clock,
    db::{Db, dialect::Sql},
    entity::change,
    error::Result,
};

/// Pause between two runs.
const PRUNE_INTERVAL: Duration = Duration::from_mins(1);

/// Maximum number of changes deleted by one transaction.
const MAX_DELETES_PER_TRANSACTION: u64 = 1_000;

const DELETE: Sql = Sql {
    postgres: "\
        DELETE FROM changes WHERE (xid, seq) IN (SELECT xid, seq FROM changes WHERE created_at < $1 \
        AND xid < (SELECT (pg_snapshot_xmin(pg_current_snapshot())::text::bigint + xid_offset)::text::xid8 FROM feed_state) \
        ORDER BY xid, seq LIMIT $2) \
        RETURNING xid::text::bigint AS xid, seq",
    sqlite: "\
        DELETE FROM changes WHERE seq IN (SELECT seq FROM changes WHERE created_at < $1 ORDER BY seq LIMIT $2) \
        RETURNING 0 AS xid, seq",
};

/// Deletes the oldest changes, regardless of age.
const DELETE_OLDEST: Sql = Sql {
    postgres: "\
        DELETE FROM changes WHERE (xid, seq) IN (SELECT xid, seq FROM changes \
        WHERE xid < (SELECT (pg_snapshot_xmin(pg_current_snapshot())::text::bigint + xid_offset)::text::xid8 FROM feed_state) \
        ORDER BY xid, seq LIMIT $1) \
        RETURNING xid::text::bigint AS xid, seq",
    sqlite: "\
        DELETE FROM changes WHERE seq IN (SELECT seq FROM changes ORDER BY seq LIMIT $1) \
        RETURNING 0 AS xid, seq",
};

const RECORD_PRUNED: Sql = Sql::common(
    "\
        UPDATE feed_state SET pruned_count = pruned_count + $1, \
        pruned_xid = CASE WHEN (pruned_xid, pruned_seq) < ($2, $3) THEN $2 ELSE pruned_xid END, \
        pruned_seq = CASE WHEN (pruned_xid, pruned_seq) < ($2, $3) THEN $3 ELSE pruned_seq END",
);

/// Limits of the stored changes.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Age after which a change is deleted.
    pub max_age: Duration,
    /// Maximum number of stored changes.
    pub max_changes: u64,
}

/// Deletes changes beyond the limits until shutdown.
pub async fn run(db: Db, retention: Retention, shutdown: CancellationToken) {
    loop {
        match prune(&db, retention).await {
            Ok(0) => {}
            Ok(deleted) => tracing::debug!(deleted, "pruned the change feed"),
            Err(error) => {
                tracing::warn!(%error, "the change feed could not be pruned; retrying");
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PRUNE_INTERVAL) => {}
        }
    }
}

/// Deletes changes beyond the maximum age, then the oldest beyond the maximum number. Returns the
/// number of deleted changes.
pub async fn prune(db: &Db, retention: Retention) -> Result<u64> {
    let max_age = TimeDelta::from_std(retention.max_age).unwrap_or(TimeDelta::MAX);
    let before = clock::for_retention().checked_sub_signed(max_age).unwrap_or(DateTime::<Utc>::MIN_UTC);
    let mut total = 0;
    loop {
        let deleted =
            db.write(async |tx| delete(tx, DELETE, [before.into(), MAX_DELETES_PER_TRANSACTION.into()]).await).await?;
        total += deleted;
        if deleted < MAX_DELETES_PER_TRANSACTION {
            break;
        }
        tokio::task::yield_now().await;
    }
    let stored = change::Entity::find().count(db.reader()).await?;
    let mut surplus = stored.saturating_sub(retention.max_changes);
    while surplus > 0 {
        let deleted = db
            .write(async |tx| delete(tx, DELETE_OLDEST, [surplus.min(MAX_DELETES_PER_TRANSACTION).into()]).await)
            .await?;
        total += deleted;
        // Changes blocked by an old transaction are deleted by a later run.
        if deleted == 0 {
            break;
        }
        surplus -= deleted.min(surplus);
        tokio::task::yield_now().await;
    }
    Ok(total)
}

/// Runs a deleting statement, and updates the pruned position. Returns the number of deleted
/// changes.
async fn delete<const N: usize>(tx: &DatabaseTransaction, sql: Sql<'_>, values: [sea_orm::Value; N]) -> Result<u64> {
    let backend = tx.get_database_backend();
    let rows = tx.query_all_raw(sql.statement(backend, values)).await?;
    let mut last = Position::default();
    for row in &rows {
        last = last.max(Position { xid: row.try_get("", "xid")?, seq: row.try_get("", "seq")?, ..last });
    }
    if !rows.is_empty() {
        let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        let values = [count.into(), last.xid.into(), last.seq.into()];
        tx.execute_raw(RECORD_PRUNED.statement(backend, values)).await?;
    }
    Ok(rows.len() as u64)
}
