//! Inserting and updating many rows at once.
//!
//! What the ORM's `insert_many` and a loop of updates do, without building a long statement anew each time: at
//! thousands of rows a second that is a good part of the work, on our side and on the database's.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

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
            let (arrays, parameters) = self.arrays(rows, &columns)?;
            let (set, same) = assignments(&columns, keys, |name, _| name.to_string());
            let (table, names) = (table::<A::Entity>(), list(&columns));
            let sql = format!(
                "UPDATE \"{table}\" AS t SET {set} FROM unnest({parameters}) AS v({names}) \
                WHERE {same}"
            );
            self.statements.push(sql.into());
            self.values.push(arrays);
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
        let (arrays, parameters) = self.arrays(rows, columns)?;
        let insert = insert_into::<A::Entity>(columns);
        self.statements
            .push(format!("{insert} SELECT * FROM unnest({parameters})").into());
        self.values.push(arrays);
        Ok(())
    }

    /// The columns of rows as arrays, and the parameters that stand for them.
    fn arrays<A: ActiveModelTrait>(
        &self,
        mut rows: Vec<A>,
        columns: &[<A::Entity as EntityTrait>::Column],
    ) -> Result<(Vec<Value>, String)> {
        let before: usize = self.values.iter().map(Vec::len).sum();
        let mut arrays: Vec<Value> = Vec::with_capacity(columns.len());
        let mut parameters = Vec::with_capacity(columns.len());
        for (at, column) in columns.iter().enumerate() {
            let mut array = String::with_capacity(rows.len() * 16);
            for (row, model) in rows.iter_mut().enumerate() {
                array.push_str(if row == 0 { "{" } else { "," });
                push_element(&mut array, model.take(*column).into_value())?;
            }
            array.push('}');
            arrays.push(array.into());
            let number = before + at + 1;
            parameters.push(format!("${number}::text::{}[]", type_name(*column)?));
        }
        Ok((arrays, parameters.join(", ")))
    }

    /// Writes them.
    pub async fn run(self, tx: &DatabaseTransaction) -> Result<()> {
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
    let mut statements = STATEMENTS.lock().unwrap_or_else(PoisonError::into_inner);
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

    let (set, same) = assignments(columns, keys, |_, at| format!("column{}", at + 1));
    let table = table::<E>();
    let key = (
        format!("UPDATE \"{table}\" AS t SET {set} WHERE {same}"),
        rows,
    );
    let mut statements = STATEMENTS.lock().unwrap_or_else(PoisonError::into_inner);
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

/// `"a" = v.…, …` for the columns that are no keys, and `t."id" = v.… AND …` for those that are.
fn assignments<C: IdenStatic>(
    columns: &[C],
    keys: &[C],
    of: impl Fn(&str, usize) -> String,
) -> (String, String) {
    let (mut set, mut same) = (Vec::new(), Vec::new());
    for (at, column) in columns.iter().enumerate() {
        let name = format!("\"{}\"", column.as_str());
        let value = of(&name, at);
        if keys.iter().any(|key| key.as_str() == column.as_str()) {
            same.push(format!("t.{name} = v.{value}"));
        } else {
            set.push(format!("{name} = v.{value}"));
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
