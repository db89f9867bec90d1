//! Recording of changes, in the transaction that makes the changes.

use sea_orm::{ActiveValue::Set, ConnectionTrait, DatabaseTransaction, DbBackend, Statement};

use crate::{
    db::{Db, bulk::insert_all},
    entity::{self, change},
    error::{Error, Result},
};

/// Change to be recorded.
#[derive(Debug)]
pub struct Record {
    /// Kind of the changed object, as named in the database.
    pub topic: String,
    /// Id of the changed object.
    pub key: String,
    /// Encoded message for subscribers.
    pub message: Vec<u8>,
}

/// Records changes in the transaction that makes the changes, so that both commit or neither.
pub async fn record(tx: &DatabaseTransaction, changes: impl IntoIterator<Item = Record>) -> Result<()> {
    let rows = rows(tx, changes).await?;
    insert_all(tx, rows).await
}

/// Returns the rows of changes in this order, to be inserted in the transaction that makes the
/// changes.
pub async fn rows(
    tx: &DatabaseTransaction,
    changes: impl IntoIterator<Item = Record>,
) -> Result<Vec<change::ActiveModel>> {
    let mut rows = rows_on_postgres(changes);
    if tx.get_database_backend() == DbBackend::Sqlite && !rows.is_empty() {
        let number = commit_seq(tx).await?;
        for row in &mut rows {
            row.commit_seq = Set(Some(number));
        }
    }
    Ok(rows)
}

/// Variant of [`rows`] for PostgreSQL, where the database numbers transactions itself.
pub fn rows_on_postgres(changes: impl IntoIterator<Item = Record>) -> Vec<change::ActiveModel> {
    let created_at = entity::now();
    let row = |change: Record| change::ActiveModel {
        topic: Set(change.topic),
        key: Set(change.key),
        message: Set(change.message),
        created_at: Set(created_at),
        ..Default::default()
    };
    changes.into_iter().map(row).collect()
}

/// Returns the number of this transaction on SQLite: the sequence number of its first change.
async fn commit_seq(tx: &DatabaseTransaction) -> Result<i64> {
    if let Some(number) = Db::commit_seq() {
        return Ok(number);
    }
    let sql = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) + 1 AS first";
    let row = tx
        .query_one_raw(Statement::from_string(DbBackend::Sqlite, sql))
        .await?
        .ok_or_else(|| Error::internal("a query returned no row"))?;
    let number = row.try_get("", "first")?;
    Db::set_commit_seq(number);
    Ok(number)
}
