//! The history: samples summed up in buckets, from roll-ups where there are, and forgotten in time.
//!
//! A roll-up is one row of `gpu_stats_minutes`: all samples of one GPU in one minute of UTC, without
//! loss but for their order, in the form of `digest`. Triggers mark the minutes in which rows of
//! `gpu_stats` come or change, whoever writes them (`gpu_stats_pending`); `rollup` works the marks
//! off. A minute without a mark is complete in its roll-up, or has no samples. `aggregate` reads
//! marks, roll-ups and samples in one snapshot, and turns samples into digests on the way, so that
//! it gives the same answer whatever has been rolled up. `retention` deletes what is old.

use sea_orm::{ConnectionTrait, FromQueryResult, Statement, Value};

use crate::error::{Error, Result};

pub mod retention;
pub mod rollup;

pub(super) mod aggregate;

mod digest;
mod gpus;
mod request;
mod sample;
mod series;
mod timeline;

/// A minute, in milliseconds.
const MINUTE: i64 = 60_000;

/// Guards the work on the history on PostgreSQL: one process at a time.
const LOCK: i64 = 0x7761_7463_6771;

/// Whether the process at hand is the one that works on the history until the transaction ends.
async fn locked(tx: &impl ConnectionTrait) -> Result<bool> {
    if tx.get_database_backend() == sea_orm::DbBackend::Sqlite {
        return Ok(true);
    }
    let lock = "SELECT pg_try_advisory_xact_lock($1) AS locked";
    let row = tx.query_one_raw(statement(tx, lock, [LOCK.into()])).await?;
    let row = row.ok_or_else(|| Error::internal("a SELECT has no row"))?;
    Ok(row.try_get("", "locked")?)
}

/// The first minute of which all samples are there.
async fn raw_from(db: &impl ConnectionTrait) -> Result<i64> {
    let state = "SELECT raw_from FROM gpu_history_state WHERE id = 1";
    let row = db.query_one_raw(statement(db, state, [])).await?;
    Ok(row.map_or(Ok(0), |row| row.try_get("", "raw_from"))?)
}

/// A statement of one text for both databases, its parameters as `$1`, `$2`, … in this order.
fn statement<const N: usize>(
    db: &impl ConnectionTrait,
    sql: &str,
    values: [Value; N],
) -> Statement {
    let backend = db.get_database_backend();
    if backend == sea_orm::DbBackend::Postgres {
        return Statement::from_sql_and_values(backend, sql, values);
    }
    // SQLite looks names of parameters up one by one.
    let mut text = String::with_capacity(sql.len());
    let mut parts = sql.split('$');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        text.push('?');
        text.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    Statement::from_sql_and_values(backend, text, values)
}

async fn all<T: FromQueryResult, const N: usize>(
    db: &impl ConnectionTrait,
    sql: &str,
    values: [Value; N],
) -> Result<Vec<T>> {
    let rows = db.query_all_raw(statement(db, sql, values)).await?;
    let rows = rows.iter().map(|row| T::from_query_result(row, ""));
    Ok(rows.collect::<Result<_, _>>()?)
}
