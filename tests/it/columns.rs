//! Every column of every table that has a service is written, read and preserved by its service.
//!
//! The tables and columns come from the migrated schema, so a new one is covered without a change of these tests, or
//! fails them until somebody says why it is not.

mod excused;
mod filled;
mod preserved;
mod read;
mod stored;
mod values;

use std::collections::BTreeSet;

use self::{
    excused::{INTERNAL, NOT_READ, NOT_WRITTEN, READ_BY_SOME, WITHOUT_SERVICE},
    stored::Stored,
};
use crate::{
    schema::expected::{Column, Schema},
    support::database::{Backend, on_both},
};

/// Tables whose columns are checked.
fn served(schema: &Schema) -> Vec<&str> {
    let excused = |table: &&str| {
        let internal = INTERNAL.iter().any(|(name, _)| name == table);
        internal || WITHOUT_SERVICE.contains(table)
    };
    let tables = schema.tables.keys().map(String::as_str);
    tables.filter(|table| !excused(table)).collect()
}

fn is_excused(list: &[(&str, &str, &str)], table: &str, column: &str) -> bool {
    list.iter().any(|(name, known, _)| (*name, *known) == (table, column))
}

/// Returns true if a stored value shows that the service has written the column.
fn is_written(column: &Column, value: &str) -> bool {
    let plain = |text: &str| text.trim_matches('\'').to_owned();
    let value = match (column.kind.as_str(), plain(value)) {
        ("Boolean", value) if value == "0" => "false".into(),
        ("Boolean", value) if value == "1" => "true".into(),
        (_, value) => value,
    };
    match column.default.as_deref() {
        _ if value == "NULL" => false,
        // Every value is as good as the default of the database.
        None | Some("now()" | "Auto" | "Auto (UUID7)") => true,
        Some(default) => plain(default) != value,
    }
}

/// Names tables and columns in the lists of excuses that the schema does not have.
fn stale_excuses(schema: &Schema) -> Vec<String> {
    let has = |table: &str, column: Option<&str>| {
        schema
            .tables
            .get(table)
            .is_some_and(|found| column.is_none_or(|column| found.columns.iter().any(|known| known.name == column)))
    };
    let columns = [NOT_WRITTEN, NOT_READ].concat();
    let columns = columns.iter().map(|(table, column, _)| (*table, Some(*column)));
    let partly = READ_BY_SOME.iter().map(|(table, column, ..)| (*table, Some(*column)));
    let tables = INTERNAL.iter().map(|(table, _)| (*table, None));
    let without = WITHOUT_SERVICE.iter().map(|table| (*table, None));
    let all = columns.chain(partly).chain(tables).chain(without);
    all.filter(|(table, column)| !has(table, *column))
        .map(|(table, column)| format!("{table}.{}", column.unwrap_or("*")))
        .collect()
}

#[on_both]
async fn every_column_is_written_and_read_by_its_service(backend: Backend) {
    let server = filled::server(backend).await;
    let stored = Stored::open(backend, &server).await;
    assert_eq!(stale_excuses(&stored.schema), Vec::<String>::new(), "excused, but not in the schema");
    let mut problems = Vec::new();
    for table in served(&stored.schema) {
        problems.extend(unwritten(&stored, table).await);
    }
    for table in served(&stored.schema) {
        problems.extend(unread(backend, &stored, &server, table).await);
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    stored.db.close().await.unwrap();
}

/// Columns of a table that no row has a value of.
async fn unwritten(stored: &Stored, table: &str) -> Vec<String> {
    let rows = stored.rows(table).await;
    if rows.is_empty() {
        return vec![format!(
            "{table}: has no rows. Fill it through its service in columns/filled.rs and read it in columns/read.rs, \
             or excuse it in columns/excused.rs"
        )];
    }
    let columns = stored.schema.tables[table].columns.iter();
    let missing = columns.filter(|column| {
        let written = rows.iter().any(|row| is_written(column, &row[&column.name]));
        !written && !is_excused(NOT_WRITTEN, table, &column.name)
    });
    missing
        .map(|column| {
            format!(
                "{table}.{}: is NULL or its default in every row: the service does not write it, or columns/filled.rs \
                 does not send it",
                column.name
            )
        })
        .collect()
}

/// Columns of a table whose values answers of its service do not show.
async fn unread(backend: Backend, stored: &Stored, server: &crate::support::TestServer, table: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let Some(before) = read::answers(server, table).await else {
        return vec![format!("{table}: nothing reads it. Add its Get and List to columns/read.rs")];
    };
    let rows = stored.rows(table).await;
    let (keys, columns) = {
        let table = &stored.schema.tables[table];
        (&table.primary_key, &table.columns)
    };
    for column in columns {
        let name = &column.name;
        if keys.contains(name) || is_excused(NOT_READ, table, name) || rows.is_empty() {
            continue;
        }
        // The last one: the first ones have more neighbours with which another value could collide.
        let mut written = rows.iter().rev();
        let row = written.find(|row| {
            let value = &row[name];
            is_written(column, value) && values::other(backend, table, column, value) != *value
        });
        let row = row.unwrap_or(&rows[0]);
        let other = values::other(backend, table, column, &row[name]);
        stored.set(table, row, name, &other).await;
        if stored.row(table, row).await[name] == row[name] {
            problems.push(format!(
                "{table}.{name}: {other} is no other value than {}; say one in columns/values.rs",
                row[name]
            ));
            continue;
        }
        let after = read::answers(server, table).await.unwrap();
        stored.set(table, row, name, &row[name]).await;
        let restored = read::answers(server, table).await.unwrap();
        assert_eq!(restored, before, "{table}.{name}: answers change by themselves");
        let pairs = before.iter().zip(&after);
        let silent: BTreeSet<_> =
            pairs.filter(|((_, before), (_, after))| before == after).map(|((call, _), _)| *call).collect();
        let excused = READ_BY_SOME.iter().find(|(known, column, ..)| (*known, *column) == (table, name));
        let expected = excused.map(|(.., silent, _)| silent.iter().copied().collect());
        if silent != expected.unwrap_or_default() {
            problems.push(format!(
                "{table}.{name}: set to {other}, which these calls do not show: {silent:?}. Convert the column to its \
                 field, or excuse it in columns/excused.rs"
            ));
        }
    }
    problems
}
