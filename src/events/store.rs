//! Many rows with few statements: the rows of all events of a batch go in together.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use sea_orm::{
    ActiveModelTrait, ColumnTrait, ColumnType, ConnectionTrait, DatabaseTransaction, DbBackend,
    EntityTrait, IdenStatic, IntoActiveModel, Iterable, Statement,
};

use crate::{
    error::{Error, Result},
    rpc::row,
};

/// Numbers for `events` and `detections` rows, this many of each.
pub(super) async fn reserve_ids(
    tx: &DatabaseTransaction,
    events: usize,
    detections: usize,
) -> Result<(Vec<i64>, Vec<i64>)> {
    let counts = [count(events), count(detections)];
    if tx.get_database_backend() == DbBackend::Postgres {
        let sql = "SELECT 'e' AS kind, nextval(pg_get_serial_sequence('events', 'id')) AS id \
                   FROM generate_series(1, $1) UNION ALL \
                   SELECT 'd', nextval(pg_get_serial_sequence('detections', 'id')) FROM generate_series(1, $2)";
        let [events, detections] = counts;
        let values = [events.into(), detections.into()];
        let rows = tx
            .query_all_raw(Statement::from_sql_and_values(
                DbBackend::Postgres,
                sql,
                values,
            ))
            .await?;
        let (mut events, mut detections) = (Vec::new(), Vec::new());
        for row in rows {
            let ids = if row.try_get::<String>("", "kind")? == "e" {
                &mut events
            } else {
                &mut detections
            };
            ids.push(row.try_get("", "id")?);
        }
        // In the order of the request, so that ids rise with it.
        events.sort_unstable();
        detections.sort_unstable();
        return Ok((events, detections));
    }
    // This transaction is the only one that writes, so that what follows the last id is free.
    let sql = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0) AS events, \
               coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'detections'), 0) AS detections";
    let row = tx
        .query_one_raw(Statement::from_string(DbBackend::Sqlite, sql))
        .await?;
    let row = row.ok_or_else(|| Error::internal("a query without a row"))?;
    let after = |last: i64, count: i64| (last + 1..=last + count).collect();
    let [events, detections] = counts;
    Ok((
        after(row.try_get("", "events")?, events),
        after(row.try_get("", "detections")?, detections),
    ))
}

fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// Inserts rows with all their columns.
///
/// What the ORM's `insert_many` does, without building the same statement anew each time: at
/// thousands of rows a second that is a third of the server's work.
pub(super) async fn insert<E, A>(tx: &DatabaseTransaction, rows: Vec<E::Model>) -> Result<()>
where
    E: EntityTrait,
    E::Model: IntoActiveModel<A>,
    A: ActiveModelTrait<Entity = E>,
{
    let backend = tx.get_database_backend();
    let columns: Vec<E::Column> = E::Column::iter().collect();
    let sizes = row::statement_sizes(rows.len());
    let mut rows = rows.into_iter().map(IntoActiveModel::into_active_model);
    for size in sizes {
        let mut values = Vec::with_capacity(size * columns.len());
        for mut row in rows.by_ref().take(size) {
            for column in &columns {
                values.extend(row.take(*column).into_value());
            }
        }
        let sql = insert_statement::<E>(backend, size);
        tx.execute_raw(Statement::from_sql_and_values(
            backend,
            sql.as_ref(),
            values,
        ))
        .await?;
    }
    Ok(())
}

/// The statement that inserts this many rows, built once.
fn insert_statement<E: EntityTrait>(backend: DbBackend, rows: usize) -> Arc<str> {
    type Statements = HashMap<(String, bool, usize), Arc<str>>;
    static STATEMENTS: LazyLock<Mutex<Statements>> = LazyLock::new(Mutex::default);

    let table = E::default().table_name().to_string();
    let key = (table, backend == DbBackend::Postgres, rows);
    let mut statements = STATEMENTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(statement) = statements.get(&key) {
        return statement.clone();
    }
    let statement: Arc<str> = build::<E>(backend, rows).into();
    statements.insert(key, statement.clone());
    statement
}

fn build<E: EntityTrait>(backend: DbBackend, rows: usize) -> String {
    let columns: Vec<E::Column> = E::Column::iter().collect();
    let mut number = 0;
    let mut parameter = |column: &E::Column| {
        if backend != DbBackend::Postgres {
            // Numbered ones would be looked up by their names, one by one.
            return "?".to_string();
        }
        number += 1;
        if let ColumnType::Enum { name, .. } = column.def().get_column_type() {
            // A text is not taken for a value of an enum type.
            return format!("${number}::{name}");
        }
        format!("${number}")
    };
    let mut row = || {
        columns
            .iter()
            .map(&mut parameter)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let rows: Vec<_> = (0..rows).map(|_| format!("({})", row())).collect();
    let names: Vec<_> = columns
        .iter()
        .map(|column| format!("\"{}\"", column.as_str()))
        .collect();
    let table = E::default().table_name().to_string();
    format!(
        "INSERT INTO \"{table}\" ({}) VALUES {}",
        names.join(", "),
        rows.join(", ")
    )
}
