//! Queries and constants that the files of the history share.

use sea_orm::{ConnectionTrait, FromQueryResult, Value};

use crate::{
    db::dialect::statement,
    error::{Error, Result},
};

/// Milliseconds per minute.
pub(super) const MINUTE_MS: i64 = 60_000;

/// Key of the advisory lock on PostgreSQL that allows one process at a time to change the history.
const ADVISORY_LOCK_KEY: i64 = 0x7761_7463_6771;

/// Takes the lock on the history until the end of the transaction. Returns false if another process
/// has the lock.
pub(super) async fn try_lock(tx: &impl ConnectionTrait) -> Result<bool> {
    if tx.get_database_backend() == sea_orm::DbBackend::Sqlite {
        return Ok(true);
    }
    let lock = "SELECT pg_try_advisory_xact_lock($1) AS locked";
    let values = [ADVISORY_LOCK_KEY.into()];
    let first_row = tx.query_one_raw(statement(tx, lock, values)).await?;
    let row = first_row.ok_or_else(|| Error::internal("a SELECT has no row"))?;
    Ok(row.try_get("", "locked")?)
}

/// First minute, counted from 1970, with all of its samples.
pub(super) async fn raw_from(db: &impl ConnectionTrait) -> Result<i64> {
    let state = "SELECT raw_from FROM gpu_history_state WHERE id = 1";
    let row = db.query_one_raw(statement(db, state, [])).await?;
    Ok(row.map_or(Ok(0), |row| row.try_get("", "raw_from"))?)
}

/// Reads all rows of a query that both databases understand.
pub(super) async fn query_all<T: FromQueryResult, const N: usize>(
    db: &impl ConnectionTrait,
    sql: &str,
    values: [Value; N],
) -> Result<Vec<T>> {
    let rows = db.query_all_raw(statement(db, sql, values)).await?;
    let parsed = rows.iter().map(|row| T::from_query_result(row, ""));
    Ok(parsed.collect::<Result<_, _>>()?)
}
