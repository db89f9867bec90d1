//! Inserts and updates of many rows at once.
//!
//! Equivalent to the ORM's `insert_many` and a loop of updates, but statements are cached. At
//! thousands of rows a second, building and parsing statements is a large part of the work.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use parking_lot::Mutex;
use sea_orm::{
    ActiveModelTrait, ActiveValue, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, IdenStatic,
    IntoActiveModel, Iterable, Statement, Value,
};
use uuid::Uuid;

use self::array::{push_element, type_name};
use crate::error::Result;

mod array;

/// Inserts rows, which must all set the same columns.
pub async fn insert_all<R, A>(tx: &DatabaseTransaction, rows: Vec<R>) -> Result<()>
where
    R: IntoActiveModel<A>,
    A: ActiveModelTrait,
{
    let mut inserts = Inserts::new(tx.get_database_backend());
    inserts.add(rows)?;
    inserts.run(tx).await
}

/// Inserts rows, which must all set the same columns, and skips rows that violate a unique
/// constraint. Returns the ids of the inserted rows.
pub async fn insert_new<A>(tx: &DatabaseTransaction, rows: Vec<A>) -> Result<Vec<Uuid>>
where
    A: ActiveModelTrait,
{
    let mut inserts = Inserts::new(tx.get_database_backend());
    inserts.add(rows)?;
    let mut ids = Vec::new();
    for (sql, values) in inserts.statements.iter().zip(inserts.values) {
        let sql = format!("{sql} ON CONFLICT DO NOTHING RETURNING id");
        let statement = Statement::from_sql_and_values(inserts.backend, sql, values);
        for row in tx.query_all_raw(statement).await? {
            ids.push(row.try_get_by_index(0)?);
        }
    }
    Ok(ids)
}

/// Rows of several tables to be inserted and updated together, in the order of addition per table.
///
/// SQLite runs a few statements per table. PostgreSQL runs a single statement, because every
/// statement costs a round trip.
#[derive(Debug)]
pub struct Inserts {
    backend: DbBackend,
    /// Statements on SQLite; parts of the single statement on PostgreSQL.
    statements: Vec<Arc<str>>,
    /// Parameters of each statement.
    values: Vec<Vec<Value>>,
}

impl Inserts {
    /// Creates an empty collection.
    pub fn new(backend: DbBackend) -> Self {
        Self { backend, statements: Vec::new(), values: Vec::new() }
    }

    /// Adds rows to be inserted, which must all set the same columns. Rows may refer to rows that
    /// were added before.
    pub fn add<R, A>(&mut self, rows: Vec<R>) -> Result<()>
    where
        R: IntoActiveModel<A>,
        A: ActiveModelTrait,
    {
        let rows: Vec<A> = rows.into_iter().map(IntoActiveModel::into_active_model).collect();
        let Some(first) = rows.first() else {
            return Ok(());
        };
        let columns = set_columns(first);
        if self.backend == DbBackend::Postgres {
            return self.add_arrays(rows, &columns);
        }
        let sizes = statement_sizes(rows.len());
        let mut rows = rows.into_iter();
        for size in sizes {
            let values = values(rows.by_ref().take(size), &columns);
            self.statements.push(insert_statement::<A::Entity>(&columns, size));
            self.values.push(values);
        }
        Ok(())
    }

    /// Adds rows to be updated, which must all set the same columns. The `keys` select a row, and
    /// the other columns are changed. A row may appear only once, and not among the inserted rows.
    pub fn update<A>(&mut self, rows: Vec<A>, keys: &[<A::Entity as EntityTrait>::Column]) -> Result<()>
    where
        A: ActiveModelTrait,
    {
        let Some(first) = rows.first() else {
            return Ok(());
        };
        let columns = set_columns(first);
        if self.backend == DbBackend::Postgres {
            let arrays = self.arrays(rows, &columns, keys)?;
            let (set, matching) = assignments(&columns, keys, |index| arrays.expressions[index].clone());
            let (table, from) = (table_name::<A::Entity>(), single_row_estimate(&arrays.from()));
            let sql = format!("UPDATE \"{table}\" AS t SET {set} FROM {from} WHERE {matching}");
            self.statements.push(sql.into());
            self.values.push(arrays.values);
            return Ok(());
        }
        let sizes = statement_sizes(rows.len());
        let mut rows = rows.into_iter();
        for size in sizes {
            let values = values(rows.by_ref().take(size), &columns);
            self.statements.push(update_statement::<A::Entity>(&columns, keys, size));
            self.values.push(values);
        }
        Ok(())
    }

    /// On PostgreSQL every column is passed as one array, so that the statement is the same for any
    /// number of rows. Arrays are passed as text, because the driver's arrays cannot hold NULL.
    fn add_arrays<A: ActiveModelTrait>(
        &mut self,
        rows: Vec<A>,
        columns: &[<A::Entity as EntityTrait>::Column],
    ) -> Result<()> {
        let arrays = self.arrays(rows, columns, &[])?;
        let (insert, from) = (insert_into::<A::Entity>(columns), arrays.from());
        let expressions = arrays.expressions.join(", ");
        self.statements.push(format!("{insert} SELECT {expressions} FROM {from}").into());
        self.values.push(arrays.values);
        Ok(())
    }

    /// Converts the columns of rows to arrays. A value shared by many rows is passed once, because
    /// PostgreSQL would parse every copy. Key columns are always passed in full, for the lookup of
    /// rows.
    fn arrays<A: ActiveModelTrait>(
        &self,
        mut rows: Vec<A>,
        columns: &[<A::Entity as EntityTrait>::Column],
        keys: &[<A::Entity as EntityTrait>::Column],
    ) -> Result<Arrays> {
        let preceding: usize = self.values.iter().map(Vec::len).sum();
        let mut arrays = Arrays::default();
        for (index, column) in columns.iter().enumerate() {
            let mut elements = rows.iter_mut().map(|row| row.take(*column).into_value()).collect::<Vec<_>>();
            let is_last = index + 1 == columns.len();
            let is_key = keys.iter().any(|key| key.as_str() == column.as_str());
            let is_shared = elements.len() >= MIN_ROWS_WITH_SHARED_VALUE
                && !is_key
                && !(is_last && arrays.parameters.is_empty())
                && elements.iter().all(|element| *element == elements[0]);
            if is_shared {
                elements.truncate(1);
            }
            let mut array = String::with_capacity(elements.len() * 16);
            for (row, element) in elements.into_iter().enumerate() {
                array.push_str(if row == 0 { "{" } else { "," });
                push_element(&mut array, element)?;
            }
            array.push('}');
            arrays.values.push(array.into());
            let number = preceding + index + 1;
            let parameter = format!("${number}::text::{}[]", type_name(*column)?);
            if is_shared {
                arrays.expressions.push(format!("(SELECT ({parameter})[1])"));
            } else {
                arrays.parameters.push(parameter);
                arrays.names.push(format!("c{index}"));
                arrays.expressions.push(format!("v.c{index}"));
            }
        }
        Ok(arrays)
    }

    /// Writes all rows. On PostgreSQL `tx` may be a connection without a transaction, because a
    /// single statement runs.
    pub async fn run(self, tx: &impl ConnectionTrait) -> Result<()> {
        if self.backend != DbBackend::Postgres {
            for (sql, values) in self.statements.iter().zip(self.values) {
                let sql = sql.as_ref();
                let statement = Statement::from_sql_and_values(self.backend, sql, values);
                tx.execute_raw(statement).await?;
            }
            return Ok(());
        }
        let Some((last, others)) = self.statements.split_last() else {
            return Ok(());
        };
        // Foreign keys are checked at the end of the statement, after all rows are inserted.
        let mut sql = String::new();
        for (index, insert) in others.iter().enumerate() {
            let comma = if index == 0 { "WITH" } else { "," };
            sql.extend([comma, " i", &index.to_string(), " AS (", insert, ")"]);
        }
        sql.push(' ');
        sql.push_str(last);
        let values = self.values.into_iter().flatten();
        let statement = Statement::from_sql_and_values(self.backend, sql, values);
        tx.execute_raw(statement).await?;
        Ok(())
    }
}

/// Minimum number of rows for a shared value to be passed once. Smaller groups share values by
/// chance, and every combination of shared columns is another prepared statement.
const MIN_ROWS_WITH_SHARED_VALUE: usize = 32;

/// Rows as parameters of a PostgreSQL statement.
#[derive(Debug, Default)]
struct Arrays {
    /// One array per column.
    values: Vec<Value>,
    /// SQL expression of each column, in terms of `from`.
    expressions: Vec<String>,
    /// Parameters of the columns in which rows differ, and their names.
    parameters: Vec<String>,
    names: Vec<String>,
}

impl Arrays {
    /// Returns the rows as a table `v`.
    fn from(&self) -> String {
        let (parameters, names) = (self.parameters.join(", "), self.names.join(", "));
        format!("unnest({parameters}) AS v({names})")
    }
}

/// Wraps a PostgreSQL table as `v`, for which the planner estimates a single row.
///
/// The default estimate is a thousand rows. With that estimate the planner would scan a joined
/// table while the table is small, and keep the plan after the table has grown. Each limit of
/// unknown value reduces the estimate to a tenth.
pub fn single_row_estimate(table: &str) -> String {
    let limited = |table: String| format!("(SELECT * FROM {table} LIMIT (SELECT NULL::bigint)) AS v");
    limited(limited(limited(table.to_string())))
}

/// Splits `rows` into statements of 64, 32, 16 or fewer rows, so that few different statements are
/// prepared.
fn statement_sizes(rows: usize) -> impl Iterator<Item = usize> {
    let mut remaining = rows;
    std::iter::from_fn(move || {
        let size = [64, 32, 16].into_iter().find(|size| *size <= remaining).unwrap_or(remaining);
        remaining -= size;
        (size > 0).then_some(size)
    })
}

/// Returns `INSERT … VALUES (?, …), …` for this number of rows, from a cache.
fn insert_statement<E: EntityTrait>(columns: &[E::Column], rows: usize) -> Arc<str> {
    type Statements = HashMap<(String, usize), Arc<str>>;
    static STATEMENTS: LazyLock<Mutex<Statements>> = LazyLock::new(Mutex::default);

    // The key holds the columns: inserts into one table may set different columns of equal number.
    let key = (insert_into::<E>(columns), rows);
    let mut statements = STATEMENTS.lock();
    let statement = statements.entry(key).or_insert_with_key(|(insert, rows)| {
        let row = format!("({})", vec!["?"; columns.len()].join(", "));
        format!("{insert} VALUES {}", vec![row; *rows].join(", ")).into()
    });
    statement.clone()
}

/// Returns `UPDATE … FROM (VALUES (?, …), …)` for this number of rows, from a cache.
fn update_statement<E: EntityTrait>(columns: &[E::Column], keys: &[E::Column], rows: usize) -> Arc<str> {
    type Statements = HashMap<(String, usize), Arc<str>>;
    static STATEMENTS: LazyLock<Mutex<Statements>> = LazyLock::new(Mutex::default);

    let (set, matching) = assignments(columns, keys, |index| format!("v.column{}", index + 1));
    let table = table_name::<E>();
    let key = (format!("UPDATE \"{table}\" AS t SET {set} WHERE {matching}"), rows);
    let mut statements = STATEMENTS.lock();
    let statement = statements.entry(key).or_insert_with(|| {
        let row = format!("({})", vec!["?"; columns.len()].join(", "));
        let rows = vec![row; rows].join(", ");
        format!("UPDATE \"{table}\" AS t SET {set} FROM (VALUES {rows}) AS v WHERE {matching}").into()
    });
    statement.clone()
}

/// Returns the values of these columns, row by row.
fn values<A: ActiveModelTrait>(
    rows: impl Iterator<Item = A>,
    columns: &[<A::Entity as EntityTrait>::Column],
) -> Vec<Value> {
    let mut values = Vec::new();
    for mut row in rows {
        values.extend(columns.iter().filter_map(|column| row.take(*column).into_value()));
    }
    values
}

/// Returns the columns set by a row.
fn set_columns<A: ActiveModelTrait>(row: &A) -> Vec<<A::Entity as EntityTrait>::Column> {
    let is_set = |column: &<A::Entity as EntityTrait>::Column| !matches!(row.get(*column), ActiveValue::NotSet);
    <A::Entity as EntityTrait>::Column::iter().filter(is_set).collect()
}

/// Returns `"a" = …, …` for columns without a key, and `t."id" = … AND …` for key columns.
fn assignments<C: IdenStatic>(columns: &[C], keys: &[C], expression: impl Fn(usize) -> String) -> (String, String) {
    let (mut set, mut matching) = (Vec::new(), Vec::new());
    for (index, column) in columns.iter().enumerate() {
        let name = format!("\"{}\"", column.as_str());
        let value = expression(index);
        if keys.iter().any(|key| key.as_str() == column.as_str()) {
            matching.push(format!("t.{name} = {value}"));
        } else {
            set.push(format!("{name} = {value}"));
        }
    }
    (set.join(", "), matching.join(" AND "))
}

fn column_list<C: IdenStatic>(columns: &[C]) -> String {
    let quoted = columns.iter().map(|column| format!("\"{}\"", column.as_str()));
    quoted.collect::<Vec<_>>().join(", ")
}

fn table_name<E: EntityTrait>() -> &'static str {
    E::default().table_name()
}

fn insert_into<E: EntityTrait>(columns: &[E::Column]) -> String {
    let table = table_name::<E>();
    format!("INSERT INTO \"{table}\" ({})", column_list(columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_parted_into_few_different_sizes() {
        for rows in 0..1000 {
            let sizes: Vec<_> = statement_sizes(rows).collect();
            assert_eq!(sizes.iter().sum::<usize>(), rows);
            let known = |size: &usize| *size <= 16 || [32, 64].contains(size);
            assert!(sizes.iter().all(known), "{sizes:?}");
        }
    }

    #[test]
    fn inserts_of_other_columns_are_other_statements() {
        use crate::entity::camera::{Column, Entity};

        let name = insert_statement::<Entity>(&[Column::Id, Column::Name], 2);
        let status = insert_statement::<Entity>(&[Column::Id, Column::Status], 2);
        assert!(name.starts_with(r#"INSERT INTO "cameras" ("id", "name") VALUES (?, ?), (?, ?)"#));
        assert!(status.starts_with(r#"INSERT INTO "cameras" ("id", "status") VALUES"#));
    }

    #[test]
    fn updates_by_other_keys_are_other_statements() {
        use crate::entity::camera::{Column, Entity};

        let columns = [Column::Id, Column::Name];
        let by_id = update_statement::<Entity>(&columns, &[Column::Id], 1);
        let by_name = update_statement::<Entity>(&columns, &[Column::Name], 1);
        let sql = |set: &str| format!(r#"UPDATE "cameras" AS t SET {set} FROM (VALUES (?, ?)) AS v WHERE "#);
        assert!(by_id.starts_with(&sql(r#""name" = v.column2"#)), "{by_id}");
        assert!(by_name.starts_with(&sql(r#""id" = v.column1"#)), "{by_name}");
    }
}
