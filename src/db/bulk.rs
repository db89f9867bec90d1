//! Inserting and updating many rows at once.
//!
//! What the ORM's `insert_many` and a loop of updates do, without building a long statement anew each time: at
//! thousands of rows a second that is a good part of the work, on our side and on the database's.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use parking_lot::Mutex;
use sea_orm::{
    ActiveModelTrait, ActiveValue, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait,
    IdenStatic, IntoActiveModel, Iterable, Statement, Value,
};
use uuid::Uuid;

use self::array::{push_element, type_name};
use crate::error::Result;

mod array;

/// Inserts rows, all of which set the same columns.
pub async fn insert_all<R, A>(tx: &DatabaseTransaction, rows: Vec<R>) -> Result<()>
where
    R: IntoActiveModel<A>,
    A: ActiveModelTrait,
{
    let mut inserts = Inserts::new(tx.get_database_backend());
    inserts.add(rows)?;
    inserts.run(tx).await
}

/// Inserts rows, all of which set the same columns, but for those whose unique values are taken. Gives the
/// ids of those that were inserted.
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

/// Rows of several tables that are inserted and updated together, each table's in the order in which they were
/// added: on SQLite by a few statements for each table, on PostgreSQL by a single one, for every
/// statement is a round trip.
#[derive(Debug)]
pub struct Inserts {
    backend: DbBackend,
    /// On SQLite what to run; on PostgreSQL the parts of the one statement.
    statements: Vec<Arc<str>>,
    /// The parameters of each of them.
    values: Vec<Vec<Value>>,
}

impl Inserts {
    /// Nothing yet.
    pub fn new(backend: DbBackend) -> Self {
        Self {
            backend,
            statements: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Adds rows, all of which set the same columns. They may refer to rows that were added before.
    pub fn add<R, A>(&mut self, rows: Vec<R>) -> Result<()>
    where
        R: IntoActiveModel<A>,
        A: ActiveModelTrait,
    {
        let rows: Vec<A> = rows
            .into_iter()
            .map(IntoActiveModel::into_active_model)
            .collect();
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
            self.statements
                .push(row_values::<A::Entity>(&columns, size));
            self.values.push(values);
        }
        Ok(())
    }

    /// Updates rows, all of which set the same columns: those with the `keys` that each sets, to the others. None
    /// may come twice, nor be among those that are inserted.
    pub fn update<A>(
        &mut self,
        rows: Vec<A>,
        keys: &[<A::Entity as EntityTrait>::Column],
    ) -> Result<()>
    where
        A: ActiveModelTrait,
    {
        let Some(first) = rows.first() else {
            return Ok(());
        };
        let columns = set_columns(first);
        if self.backend == DbBackend::Postgres {
            let given = self.arrays(rows, &columns, keys)?;
            let (set, same) = assignments(&columns, keys, |at| given.of[at].clone());
            let (table, from) = (table::<A::Entity>(), few(&given.from()));
            let sql = format!("UPDATE \"{table}\" AS t SET {set} FROM {from} WHERE {same}");
            self.statements.push(sql.into());
            self.values.push(given.values);
            return Ok(());
        }
        let sizes = statement_sizes(rows.len());
        let mut rows = rows.into_iter();
        for size in sizes {
            let values = values(rows.by_ref().take(size), &columns);
            self.statements
                .push(update_values::<A::Entity>(&columns, keys, size));
            self.values.push(values);
        }
        Ok(())
    }

    /// On PostgreSQL every column goes as one array, so that the statement is the same for any
    /// number of rows. The arrays are in their text form, for those of the driver cannot hold NULL.
    fn add_arrays<A: ActiveModelTrait>(
        &mut self,
        rows: Vec<A>,
        columns: &[<A::Entity as EntityTrait>::Column],
    ) -> Result<()> {
        let given = self.arrays(rows, columns, &[])?;
        let (insert, from) = (insert_into::<A::Entity>(columns), given.from());
        let of = given.of.join(", ");
        self.statements
            .push(format!("{insert} SELECT {of} FROM {from}").into());
        self.values.push(given.values);
        Ok(())
    }

    /// The columns of rows as arrays. One in which many rows have the same value goes once: a database that parses
    /// it for every row has a good part of its work in that. But not one of the keys, by which rows are looked up.
    fn arrays<A: ActiveModelTrait>(
        &self,
        mut rows: Vec<A>,
        columns: &[<A::Entity as EntityTrait>::Column],
        keys: &[<A::Entity as EntityTrait>::Column],
    ) -> Result<Arrays> {
        let before: usize = self.values.iter().map(Vec::len).sum();
        let mut arrays = Arrays::default();
        for (at, column) in columns.iter().enumerate() {
            let mut elements = rows
                .iter_mut()
                .map(|row| row.take(*column).into_value())
                .collect::<Vec<_>>();
            let is_last = at + 1 == columns.len();
            let is_key = keys.iter().any(|key| key.as_str() == column.as_str());
            let once = elements.len() >= MANY
                && !is_key
                && !(is_last && arrays.parameters.is_empty())
                && elements.iter().all(|element| *element == elements[0]);
            if once {
                elements.truncate(1);
            }
            let mut array = String::with_capacity(elements.len() * 16);
            for (row, element) in elements.into_iter().enumerate() {
                array.push_str(if row == 0 { "{" } else { "," });
                push_element(&mut array, element)?;
            }
            array.push('}');
            arrays.values.push(array.into());
            let number = before + at + 1;
            let parameter = format!("${number}::text::{}[]", type_name(*column)?);
            if once {
                arrays.of.push(format!("(SELECT ({parameter})[1])"));
            } else {
                arrays.parameters.push(parameter);
                arrays.names.push(format!("c{at}"));
                arrays.of.push(format!("v.c{at}"));
            }
        }
        Ok(arrays)
    }

    /// Writes them. On PostgreSQL `tx` may be a connection without a transaction, for it is one statement.
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
        // References are checked at the end of the statement, when all rows are there.
        let mut sql = String::new();
        for (at, insert) in others.iter().enumerate() {
            let comma = if at == 0 { "WITH" } else { "," };
            sql.extend([comma, " i", &at.to_string(), " AS (", insert, ")"]);
        }
        sql.push(' ');
        sql.push_str(last);
        let values = self.values.into_iter().flatten();
        let statement = Statement::from_sql_and_values(self.backend, sql, values);
        tx.execute_raw(statement).await?;
        Ok(())
    }
}

/// From how many rows on those that have the same value share it. Fewer have it by chance, now and then, and
/// every combination of columns that are shared is a statement of its own.
const MANY: usize = 32;

/// Rows as a statement of PostgreSQL is given them.
#[derive(Debug, Default)]
struct Arrays {
    /// One array for each column.
    values: Vec<Value>,
    /// What the value of each column is, in terms of `from`.
    of: Vec<String>,
    /// Those of the columns in which rows differ, with their names.
    parameters: Vec<String>,
    names: Vec<String>,
}

impl Arrays {
    /// The rows as a table `v`.
    fn from(&self) -> String {
        let (parameters, names) = (self.parameters.join(", "), self.names.join(", "));
        format!("unnest({parameters}) AS v({names})")
    }
}

/// A table `v` of PostgreSQL of which the planner expects a single row: each limit that it does not know makes it
/// expect a tenth. It would expect a thousand, and while it finds the table small that is to be joined with them, make
/// a plan that reads all of that; and keep the plan while the table grows.
pub fn few(table: &str) -> String {
    let limited =
        |table: String| format!("(SELECT * FROM {table} LIMIT (SELECT NULL::bigint)) AS v");
    limited(limited(limited(table.to_string())))
}

/// How many rows each of the statements inserts that together insert `rows`: 64, 32, or any number
/// up to 16, so that there are few different statements and each is prepared once.
fn statement_sizes(rows: usize) -> impl Iterator<Item = usize> {
    let mut left = rows;
    std::iter::from_fn(move || {
        let size = [64, 32, 16]
            .into_iter()
            .find(|size| *size <= left)
            .unwrap_or(left);
        left -= size;
        (size > 0).then_some(size)
    })
}

/// `INSERT … VALUES (?, …), …` for this many rows, built once.
fn row_values<E: EntityTrait>(columns: &[E::Column], rows: usize) -> Arc<str> {
    type Statements = HashMap<(String, usize), Arc<str>>;
    static STATEMENTS: LazyLock<Mutex<Statements>> = LazyLock::new(Mutex::default);

    // By the columns, not by how many: inserts into one table may set others, as many of them.
    let key = (insert_into::<E>(columns), rows);
    let mut statements = STATEMENTS.lock();
    let statement = statements.entry(key).or_insert_with_key(|(insert, rows)| {
        let row = format!("({})", vec!["?"; columns.len()].join(", "));
        format!("{insert} VALUES {}", vec![row; *rows].join(", ")).into()
    });
    statement.clone()
}

/// `UPDATE … FROM (VALUES (?, …), …)` for this many rows, built once.
fn update_values<E: EntityTrait>(
    columns: &[E::Column],
    keys: &[E::Column],
    rows: usize,
) -> Arc<str> {
    type Statements = HashMap<(String, usize), Arc<str>>;
    static STATEMENTS: LazyLock<Mutex<Statements>> = LazyLock::new(Mutex::default);

    let (set, same) = assignments(columns, keys, |at| format!("v.column{}", at + 1));
    let table = table::<E>();
    let key = (
        format!("UPDATE \"{table}\" AS t SET {set} WHERE {same}"),
        rows,
    );
    let mut statements = STATEMENTS.lock();
    let statement = statements.entry(key).or_insert_with(|| {
        let row = format!("({})", vec!["?"; columns.len()].join(", "));
        let rows = vec![row; rows].join(", ");
        format!("UPDATE \"{table}\" AS t SET {set} FROM (VALUES {rows}) AS v WHERE {same}").into()
    });
    statement.clone()
}

/// The values that rows have for these columns, one after the other.
fn values<A: ActiveModelTrait>(
    rows: impl Iterator<Item = A>,
    columns: &[<A::Entity as EntityTrait>::Column],
) -> Vec<Value> {
    let mut values = Vec::new();
    for mut row in rows {
        values.extend(
            columns
                .iter()
                .filter_map(|column| row.take(*column).into_value()),
        );
    }
    values
}

/// The columns that a row sets.
fn set_columns<A: ActiveModelTrait>(row: &A) -> Vec<<A::Entity as EntityTrait>::Column> {
    let is_set = |column: &<A::Entity as EntityTrait>::Column| {
        !matches!(row.get(*column), ActiveValue::NotSet)
    };
    <A::Entity as EntityTrait>::Column::iter()
        .filter(is_set)
        .collect()
}

/// `"a" = …, …` for the columns that are no keys, and `t."id" = … AND …` for those that are.
fn assignments<C: IdenStatic>(
    columns: &[C],
    keys: &[C],
    of: impl Fn(usize) -> String,
) -> (String, String) {
    let (mut set, mut same) = (Vec::new(), Vec::new());
    for (at, column) in columns.iter().enumerate() {
        let name = format!("\"{}\"", column.as_str());
        let value = of(at);
        if keys.iter().any(|key| key.as_str() == column.as_str()) {
            same.push(format!("t.{name} = {value}"));
        } else {
            set.push(format!("{name} = {value}"));
        }
    }
    (set.join(", "), same.join(" AND "))
}

fn list<C: IdenStatic>(columns: &[C]) -> String {
    let names = columns.iter();
    let names = names.map(|column| format!("\"{}\"", column.as_str()));
    names.collect::<Vec<_>>().join(", ")
}

fn table<E: EntityTrait>() -> &'static str {
    E::default().table_name()
}

fn insert_into<E: EntityTrait>(columns: &[E::Column]) -> String {
    let table = table::<E>();
    format!("INSERT INTO \"{table}\" ({})", list(columns))
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

        let name = row_values::<Entity>(&[Column::Id, Column::Name], 2);
        let status = row_values::<Entity>(&[Column::Id, Column::Status], 2);
        assert!(name.starts_with(r#"INSERT INTO "cameras" ("id", "name") VALUES (?, ?), (?, ?)"#));
        assert!(status.starts_with(r#"INSERT INTO "cameras" ("id", "status") VALUES"#));
    }

    #[test]
    fn updates_by_other_keys_are_other_statements() {
        use crate::entity::camera::{Column, Entity};

        let columns = [Column::Id, Column::Name];
        let by_id = update_values::<Entity>(&columns, &[Column::Id], 1);
        let by_name = update_values::<Entity>(&columns, &[Column::Name], 1);
        let sql = |set: &str| {
            format!(r#"UPDATE "cameras" AS t SET {set} FROM (VALUES (?, ?)) AS v WHERE "#)
        };
        assert!(by_id.starts_with(&sql(r#""name" = v.column2"#)), "{by_id}");
        assert!(
            by_name.starts_with(&sql(r#""id" = v.column1"#)),
            "{by_name}"
        );
    }
}
