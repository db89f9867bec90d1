//! SQL expressions and checks on rows, shared by all families.

use sea_orm::{
    ActiveModelTrait, ActiveValue, DbBackend, EntityTrait, Iterable, ModelTrait,
    sea_query::{Expr, ExprTrait, LikeExpr, SimpleExpr},
};

use super::dialect::Sql;
use crate::error::{Error, Result};

/// Conversion of a stored SQLite time to microseconds since 1970. SQLite's own functions are
/// limited to milliseconds.
const SQLITE_MICROS: &str = "(unixepoch(substr({t}, 1, 19)) * 1000000 \
    + CASE WHEN substr({t}, 20, 1) = '.' \
    THEN CAST(substr(substr({t}, 21, length({t}) - 26) || '000000', 1, 6) AS INTEGER) ELSE 0 END)";

/// Returns the row, or `NOT_FOUND` with the resource and the requested id.
pub fn require<M>(row: Option<M>, resource: &'static str, id: impl std::fmt::Display) -> Result<M> {
    row.ok_or_else(|| Error::NotFound { resource, id: id.to_string() })
}

/// Returns true if `row` sets a column to a value that differs from `model`.
pub fn differs<A: ActiveModelTrait>(row: &A, model: &<A::Entity as EntityTrait>::Model) -> bool {
    let mut columns = <A::Entity as EntityTrait>::Column::iter();
    columns.any(|column| match row.get(column) {
        ActiveValue::Set(value) => value != model.get(column),
        ActiveValue::Unchanged(_) | ActiveValue::NotSet => false,
    })
}

/// Escapes `text` for a `LIKE` pattern with `ESCAPE '\'`.
pub fn escape_like(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Counts rows. An index can answer this count, unlike the count of a column.
pub fn count() -> SimpleExpr {
    Expr::cust("count(*)")
}

/// Converts a time expression to whole microseconds since 1970.
pub fn micros(time: &str, backend: DbBackend) -> String {
    if backend == DbBackend::Postgres {
        format!("CAST(extract(epoch FROM {time}) * 1000000 AS bigint)")
    } else {
        SQLITE_MICROS.replace("{t}", time)
    }
}

/// Matches if a text column contains `text`. The case of A to Z is ignored.
pub fn contains(column: SimpleExpr, backend: DbBackend, text: &str) -> SimpleExpr {
    let pattern = format!("%{}%", escape_like(&text.to_ascii_lowercase()));
    lower(column, backend).like(LikeExpr::new(pattern).escape('\\'))
}

/// Matches if a text column equals `text`. The case of A to Z is ignored.
pub fn equals(column: SimpleExpr, backend: DbBackend, text: &str) -> SimpleExpr {
    lower(column, backend).eq(text.to_ascii_lowercase())
}

/// Matches if a comma-separated text column has `value` as an element. Case matters.
pub fn list_contains(column: SimpleExpr, backend: DbBackend, value: &str) -> SimpleExpr {
    let list = Sql { postgres: "',' || $1 || ','", sqlite: "',' || ? || ','" };
    let pattern = format!("%,{},%", escape_like(value));
    list.expression(backend, [column]).like(LikeExpr::new(pattern).escape('\\'))
}

/// Lower case with the same result on both databases. Without collation C, PostgreSQL's `lower`
/// covers more letters than SQLite's.
fn lower(column: SimpleExpr, backend: DbBackend) -> SimpleExpr {
    Sql { postgres: r#"lower($1 COLLATE "C")"#, sqlite: "lower(?)" }.expression(backend, [column])
}
