//! Rows: what every family does with one.

use sea_orm::{
    DbBackend,
    sea_query::{Expr, ExprTrait, LikeExpr, SimpleExpr},
};

use crate::error::{Error, Result};

/// A time as SQLite keeps it, in microseconds since 1970. Its own functions know milliseconds.
const SQLITE_MICROS: &str = "(unixepoch(substr({t}, 1, 19)) * 1000000 \
    + CASE WHEN substr({t}, 20, 1) = '.' \
    THEN CAST(substr(substr({t}, 21, length({t}) - 26) || '000000', 1, 6) AS INTEGER) ELSE 0 END)";

/// The row, or `NOT_FOUND` naming the resource and the id that was asked for.
pub fn found<M>(row: Option<M>, resource: &'static str, id: impl std::fmt::Display) -> Result<M> {
    row.ok_or_else(|| Error::NotFound {
        resource,
        id: id.to_string(),
    })
}

/// What `text` must be escaped to in a `LIKE` pattern with `ESCAPE '\'`.
pub fn like_escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// How many rows there are. Unlike the count of a column, for which every row must be read, an index can say so.
pub fn count() -> SimpleExpr {
    Expr::cust("count(*)")
}

/// A time, such as a column, in microseconds since 1970: a whole number, from which others can be taken.
pub fn micros(time: &str, backend: DbBackend) -> String {
    if backend == DbBackend::Postgres {
        format!("CAST(extract(epoch FROM {time}) * 1000000 AS bigint)")
    } else {
        SQLITE_MICROS.replace("{t}", time)
    }
}

/// Whether a text column holds `text`; the case of A to Z does not matter.
pub fn contains(column: SimpleExpr, backend: DbBackend, text: &str) -> SimpleExpr {
    let pattern = format!("%{}%", like_escaped(&text.to_ascii_lowercase()));
    lower(column, backend).like(LikeExpr::new(pattern).escape('\\'))
}

/// Whether a text column is `text`; the case of A to Z does not matter.
pub fn equals(column: SimpleExpr, backend: DbBackend, text: &str) -> SimpleExpr {
    lower(column, backend).eq(text.to_ascii_lowercase())
}

/// Whether a text column that lists values, parted by commas, has `value` among them, letter for letter.
pub fn lists(column: SimpleExpr, backend: DbBackend, value: &str) -> SimpleExpr {
    let sql = if backend == DbBackend::Postgres {
        "',' || $1 || ','"
    } else {
        "',' || ? || ','"
    };
    let pattern = format!("%,{},%", like_escaped(value));
    Expr::cust_with_exprs(sql, [column]).like(LikeExpr::new(pattern).escape('\\'))
}

/// Lower case as both databases have it: `lower` of PostgreSQL knows more
/// letters than that of SQLite, unless the collation is C.
fn lower(column: SimpleExpr, backend: DbBackend) -> SimpleExpr {
    let sql = if backend == DbBackend::Postgres {
        r#"lower($1 COLLATE "C")"#
    } else {
        "lower(?)"
    };
    Expr::cust_with_exprs(sql, [column])
}
