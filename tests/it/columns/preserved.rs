//! Operations change the columns that they are documented to change, and no others.

mod alerts;
mod jobs;
mod resources;

use std::{collections::BTreeSet, future::Future};

use super::{
    is_written,
    stored::{Row, Stored},
    values,
};
use crate::support::database::Backend;

/// A row whose every column has a recognisable value, and what operations have changed of it.
pub struct Observed<'a> {
    backend: Backend,
    stored: &'a Stored,
    table: &'static str,
    row: Row,
    changed: BTreeSet<String>,
    problems: Vec<String>,
}

impl<'a> Observed<'a> {
    /// The only row of a table.
    pub async fn only(backend: Backend, stored: &'a Stored, table: &'static str) -> Self {
        let mut rows = stored.rows(table).await;
        assert_eq!(rows.len(), 1, "{table}");
        Self::new(backend, stored, table, rows.remove(0))
    }

    fn new(backend: Backend, stored: &'a Stored, table: &'static str, row: Row) -> Self {
        Self { backend, stored, table, row, changed: BTreeSet::new(), problems: Vec::new() }
    }

    /// Gives every column that is NULL or its default another value, but for those of `but`.
    pub async fn mark(&self, but: &[&str]) {
        let table = &self.stored.schema.tables[self.table];
        for column in &table.columns {
            let name = column.name.as_str();
            let value = &self.row[name];
            let is_key = table.primary_key.iter().any(|key| key == name);
            if is_key || is_written(column, value) || but.contains(&name) {
                continue;
            }
            let other = values::other(self.backend, self.table, column, value);
            self.set(&[(name, &other)]).await;
        }
    }

    /// Sets columns to expressions of SQL.
    pub async fn set(&self, values: &[(&str, &str)]) {
        self.stored.set_all(self.table, &self.row, values).await;
    }

    /// Checks that an operation changes these columns, and no others.
    pub async fn run(&mut self, operation: &str, columns: &[&str], running: impl Future) {
        let before = self.stored.row(self.table, &self.row).await;
        Box::pin(running).await;
        let after = self.stored.row(self.table, &self.row).await;
        let names = before.keys().filter(|name| before[*name] != after[*name]);
        let changed: BTreeSet<_> = names.map(String::as_str).collect();
        let expected: BTreeSet<_> = columns.iter().copied().collect();
        for name in changed.difference(&expected) {
            self.problems.push(format!(
                "{}.{name}: {operation} must not change it, and makes {} of {}",
                self.table, after[*name], before[*name]
            ));
        }
        for name in expected.difference(&changed) {
            self.problems
                .push(format!("{}.{name}: {operation} must change it, and leaves {}", self.table, before[*name]));
        }
        self.changed.extend(changed.into_iter().map(String::from));
    }

    /// Fails if an operation has changed other columns than it may, or if nobody says of a column that operations
    /// leave it alone.
    pub fn finish(mut self, constant: &[&str]) {
        let table = &self.stored.schema.tables[self.table];
        for column in &table.columns {
            let name = column.name.as_str();
            let is_key = table.primary_key.iter().any(|key| key == name);
            let changes = self.changed.contains(name);
            if !is_key && changes == constant.contains(&name) {
                self.problems.push(format!(
                    "{}.{name}: name it either as constant, or as changed by an operation, in columns/preserved/",
                    self.table
                ));
            }
        }
        assert!(self.problems.is_empty(), "{}", self.problems.join("\n"));
    }
}
