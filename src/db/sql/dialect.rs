//! SQL in the dialects of the two databases.

use sea_orm::{
    ConnectionTrait, DbBackend, Statement, Value,
    sea_query::{Expr, SimpleExpr},
};

/// A statement or an expression in both dialects. Parameters of a statement are `$1`, `$2`, … in
/// both; those of an expression are `?` in SQLite, in order.
#[derive(Debug, Clone, Copy)]
pub struct Sql<'a> {
    pub postgres: &'a str,
    pub sqlite: &'a str,
}

impl<'a> Sql<'a> {
    /// SQL that both databases understand.
    pub const fn common(sql: &'a str) -> Self {
        Self { postgres: sql, sqlite: sql }
    }

    /// Returns the text in the dialect of `backend`.
    pub const fn text(self, backend: DbBackend) -> &'a str {
        if matches!(backend, DbBackend::Postgres) { self.postgres } else { self.sqlite }
    }

    /// Builds the statement in the dialect of `backend`. `values` are in the order of the numbers of
    /// the parameters, and a parameter may occur several times.
    pub fn statement(self, backend: DbBackend, values: impl IntoIterator<Item = Value>) -> Statement {
        if backend == DbBackend::Postgres {
            return Statement::from_sql_and_values(backend, self.postgres, values);
        }
        Statement::from_sql_and_values(backend, number_parameters(self.sqlite), values)
    }
}

impl Sql<'static> {
    /// Builds the expression in the dialect of `backend`.
    pub fn expression(self, backend: DbBackend, parameters: impl IntoIterator<Item = SimpleExpr>) -> SimpleExpr {
        Expr::cust_with_exprs(self.text(backend), parameters)
    }
}

/// Builds a statement that both databases understand, as [`Sql::statement`] does.
pub fn statement(db: &impl ConnectionTrait, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Sql::common(sql).statement(db.get_database_backend(), values)
}

/// Writes each parameter `$1` as `?1`. SQLite takes `$1` for a name, which it looks up at each
/// binding.
fn number_parameters(sql: &str) -> String {
    let mut text = String::with_capacity(sql.len());
    let mut characters = sql.chars().peekable();
    while let Some(character) = characters.next() {
        let is_parameter = character == '$' && characters.peek().is_some_and(char::is_ascii_digit);
        text.push(if is_parameter { '?' } else { character });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_has_the_parameters_of_its_dialect() {
        let sql = Sql { postgres: "SELECT $1::text || $2", sqlite: "SELECT $2 || json_extract($1, '$.a') || $1" };
        let values = || [Value::from("a"), Value::from("b")];
        let postgres = sql.statement(DbBackend::Postgres, values());
        assert_eq!((postgres.sql.as_str(), postgres.values.unwrap().0.len()), ("SELECT $1::text || $2", 2));
        let sqlite = sql.statement(DbBackend::Sqlite, values());
        assert_eq!(sqlite.sql, "SELECT ?2 || json_extract(?1, '$.a') || ?1");
    }
}
