//! Inserting many rows at once.
//!
//! What the ORM's `insert_many` does, without building a long statement anew each time: at
//! thousands of rows a second that is a good part of the work, on our side and on the database's.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use sea_orm::{
    ActiveModelTrait, ActiveValue, ColumnTrait, ColumnType, ConnectionTrait, DatabaseTransaction,
    DbBackend, EntityTrait, IdenStatic, IntoActiveModel, Iterable, Statement, Value,
};

use crate::error::{Error, Result};

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

/// Rows of several tables that are inserted together, each table's in the order in which they were
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
        let is_set = |column: &<A::Entity as EntityTrait>::Column| {
            !matches!(first.get(*column), ActiveValue::NotSet)
        };
        let columns: Vec<_> = <A::Entity as EntityTrait>::Column::iter()
            .filter(is_set)
            .collect();
        if self.backend == DbBackend::Postgres {
            return self.add_arrays(rows, &columns);
        }
        let sizes = statement_sizes(rows.len());
        let mut rows = rows.into_iter();
        for size in sizes {
            let mut values = Vec::with_capacity(size * columns.len());
            for mut row in rows.by_ref().take(size) {
                values.extend(
                    columns
                        .iter()
                        .filter_map(|column| row.take(*column).into_value()),
                );
            }
            self.statements
                .push(row_values::<A::Entity>(&columns, size));
            self.values.push(values);
        }
        Ok(())
    }

    /// On PostgreSQL every column goes as one array, so that the statement is the same for any
    /// number of rows. The arrays are in their text form, for those of the driver cannot hold NULL.
    fn add_arrays<A: ActiveModelTrait>(
        &mut self,
        mut rows: Vec<A>,
        columns: &[<A::Entity as EntityTrait>::Column],
    ) -> Result<()> {
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
        let (insert, parameters) = (insert_into::<A::Entity>(columns), parameters.join(", "));
        self.statements
            .push(format!("{insert} SELECT * FROM unnest({parameters})").into());
        self.values.push(arrays);
        Ok(())
    }

    /// Inserts them.
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

fn insert_into<E: EntityTrait>(columns: &[E::Column]) -> String {
    let names: Vec<_> = columns
        .iter()
        .map(|column| format!("\"{}\"", column.as_str()))
        .collect();
    format!(
        "INSERT INTO \"{}\" ({})",
        E::default().table_name(),
        names.join(", ")
    )
}

/// The type of a column as PostgreSQL calls it.
fn type_name(column: impl ColumnTrait) -> Result<String> {
    let definition = column.def();
    let column_type = definition.get_column_type();
    if let ColumnType::Enum { name, .. } = column_type {
        return Ok(name.to_string());
    }
    let known = [
        (matches!(column_type, ColumnType::BigInteger), "bigint"),
        (matches!(column_type, ColumnType::Integer), "integer"),
        (
            matches!(column_type, ColumnType::Double),
            "double precision",
        ),
        (matches!(column_type, ColumnType::Boolean), "boolean"),
        (
            matches!(column_type, ColumnType::String(_) | ColumnType::Text),
            "text",
        ),
        (
            matches!(column_type, ColumnType::TimestampWithTimeZone),
            "timestamptz",
        ),
        (matches!(column_type, ColumnType::Uuid), "uuid"),
        (matches!(column_type, ColumnType::Json), "json"),
        (matches!(column_type, ColumnType::JsonBinary), "jsonb"),
        (
            matches!(column_type, ColumnType::VarBinary(_) | ColumnType::Blob),
            "bytea",
        ),
    ];
    let name = known
        .into_iter()
        .find(|(is, _)| *is)
        .map(|(_, name)| name.to_string());
    name.ok_or_else(|| Error::internal(format!("no array of {column_type:?} is known")))
}

/// Adds an element to the text form of an array.
fn push_element(array: &mut String, value: Option<Value>) -> Result<()> {
    // Writing to a string cannot fail.
    let written = match value {
        None => return Err(Error::internal("a row leaves out a column")),
        Some(Value::Bool(Some(value))) => write!(array, "{value}"),
        Some(Value::Int(Some(value))) => write!(array, "{value}"),
        Some(Value::BigInt(Some(value))) => write!(array, "{value}"),
        Some(Value::Double(Some(value))) => write!(array, "{value:?}"),
        Some(Value::Uuid(Some(value))) => write!(array, "{value}"),
        Some(Value::ChronoDateTimeUtc(Some(value))) => {
            write!(array, "\"{}\"", value.format("%Y-%m-%d %H:%M:%S%.6f+00"))
        }
        Some(Value::String(Some(value))) => {
            push_quoted(array, &value);
            Ok(())
        }
        Some(Value::Json(Some(value))) => {
            push_quoted(array, &value.to_string());
            Ok(())
        }
        Some(Value::Bytes(Some(value))) => {
            array.push_str("\"\\\\x");
            value
                .iter()
                .try_for_each(|byte| write!(array, "{byte:02x}"))
                .map(|()| array.push('"'))
        }
        Some(value) if value == value.as_null() => write!(array, "NULL"),
        Some(value) => return Err(Error::internal(format!("no text of {value:?} is known"))),
    };
    written.map_err(Error::internal)
}

fn push_quoted(array: &mut String, text: &str) {
    array.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            array.push('\\');
        }
        array.push(c);
    }
    array.push('"');
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
    fn elements_are_written_as_postgres_reads_them() {
        let text = |value: Value| {
            let mut array = String::new();
            push_element(&mut array, Some(value)).unwrap();
            array
        };
        assert_eq!(
            text(r#"a "b" \ {c},NULL"#.into()),
            r#""a \"b\" \\ {c},NULL""#
        );
        assert_eq!(text("".into()), r#""""#);
        assert_eq!(text(Value::String(None)), "NULL");
        assert_eq!(text(Value::BigInt(None)), "NULL");
        assert_eq!(text(0.1_f64.into()), "0.1");
        assert_eq!(text(1e300_f64.into()), "1e300");
        assert_eq!(text(vec![0_u8, 255].into()), r#""\\x00ff""#);
        assert_eq!(
            text(serde_json::json!({"a": "\"\\"}).into()),
            r#""{\"a\":\"\\\"\\\\\"}""#
        );
    }
}
