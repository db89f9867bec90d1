//! Rows as the database has them, read and changed beside the server.

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};

use crate::{
    schema::{catalogue, expected::Schema},
    support::{TestServer, database::Backend},
};

/// The values of a row as literals of SQL, by column.
pub type Row = BTreeMap<String, String>;

/// The database of a server, beside it.
pub struct Stored {
    backend: Backend,
    pub db: DatabaseConnection,
    pub schema: Schema,
}

impl Stored {
    pub async fn open(backend: Backend, server: &TestServer) -> Self {
        let db = server.database.connect().await;
        let schema = catalogue::schema(backend, &db).await;
        Self { backend, db, schema }
    }

    /// All rows of a table, in the order of their keys.
    pub async fn rows(&self, table: &str) -> Vec<Row> {
        self.select(table, "").await
    }

    /// The present values of a row.
    pub async fn row(&self, table: &str, row: &Row) -> Row {
        let rows = self.select(table, &self.is(table, row)).await;
        let [row] = &rows[..] else {
            panic!("{table}: {} rows like {row:?}", rows.len());
        };
        row.clone()
    }

    /// Sets a column of a row to an expression of SQL.
    pub async fn set(&self, table: &str, row: &Row, column: &str, expression: &str) {
        self.set_all(table, row, &[(column, expression)]).await;
    }

    /// Sets columns of a row to expressions of SQL.
    pub async fn set_all(&self, table: &str, row: &Row, values: &[(&str, &str)]) {
        let values: Vec<_> = values.iter().map(|(column, expression)| format!("\"{column}\" = {expression}")).collect();
        let values = values.join(", ");
        let condition = self.is(table, row);
        let sql = format!("UPDATE \"{table}\" SET {values} {condition}");
        let updated = self.db.execute_unprepared(&sql).await;
        let updated = updated.unwrap_or_else(|error| panic!("{sql}: {error}; see values.rs"));
        assert_eq!(updated.rows_affected(), 1, "{sql}");
    }

    fn is(&self, table: &str, row: &Row) -> String {
        let keys = &self.schema.tables[table].primary_key;
        let keys: Vec<_> = keys.iter().map(|key| format!("\"{key}\" = {}", row[key])).collect();
        format!("WHERE {}", keys.join(" AND "))
    }

    async fn select(&self, table: &str, condition: &str) -> Vec<Row> {
        let quote = match self.backend {
            Backend::Sqlite => "quote",
            Backend::Postgres => "quote_nullable",
        };
        let columns = &self.schema.tables[table].columns;
        let literals: Vec<_> =
            columns.iter().map(|column| format!("{quote}(\"{0}\") AS \"{0}\"", column.name)).collect();
        let keys: Vec<_> =
            self.schema.tables[table].primary_key.iter().map(|key| format!("\"{table}\".\"{key}\"")).collect();
        let (literals, keys) = (literals.join(", "), keys.join(", "));
        let sql = format!("SELECT {literals} FROM \"{table}\" {condition} ORDER BY {keys}");
        let query = Statement::from_string(self.db.get_database_backend(), sql);
        let rows = self.db.query_all_raw(query).await.unwrap();
        let literal = |row: &sea_orm::QueryResult, name: &str| row.try_get("", name).unwrap();
        rows.iter()
            .map(|row| {
                let columns = columns.iter().map(|column| &column.name);
                columns.map(|name| (name.clone(), literal(row, name))).collect()
            })
            .collect()
    }
}
