//! SQL that differs between SQLite and PostgreSQL, and building blocks that migrations share.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, enumeration, timestamp_with_time_zone, uuid},
    sea_orm::DbBackend,
};

/// Current time on SQLite in the text format of the ORM: RFC 3339 with `+00:00`, without a fraction
/// that is zero. SQLite compares times as text, so any other format would sort wrongly.
const SQLITE_NOW: &str = "replace(strftime('%Y-%m-%dT%H:%M:%f', 'now'), '.000', '') || '+00:00'";

/// New UUID version 7 on SQLite, as the 16 bytes that the ORM writes: 48 bits of milliseconds, the
/// version, 12 random bits, the variant, 62 random bits.
const SQLITE_UUID7: &str = "unhex(\
    printf('%012x', CAST(round(unixepoch('now', 'subsec') * 1000) AS INTEGER)) \
    || '7' || substr(hex(randomblob(2)), 2) \
    || substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(8)), 2))";

pub(crate) fn is_postgres(manager: &SchemaManager<'_>) -> bool {
    manager.get_database_backend() == DbBackend::Postgres
}

/// Runs statements in order.
pub(crate) async fn execute(manager: &SchemaManager<'_>, statements: &[&str]) -> Result<(), DbErr> {
    for statement in statements {
        manager.get_connection().execute_unprepared(statement).await?;
    }
    Ok(())
}

/// Runs the statements of the connected database in order.
pub(crate) async fn per_backend(manager: &SchemaManager<'_>, postgres: &[&str], sqlite: &[&str]) -> Result<(), DbErr> {
    let statements = if is_postgres(manager) { postgres } else { sqlite };
    execute(manager, statements).await
}

/// Closed set of labels: a native enum type on PostgreSQL, a text with a CHECK on SQLite.
pub(crate) struct Vocabulary {
    /// Name of the enum type on PostgreSQL.
    pub(crate) name: &'static str,
    pub(crate) labels: &'static [&'static str],
}

impl Vocabulary {
    pub(crate) async fn create(&self, manager: &SchemaManager<'_>) -> Result<(), DbErr> {
        let labels = self.labels.join("', '");
        let create = format!("CREATE TYPE {} AS ENUM ('{labels}')", self.name);
        per_backend(manager, &[&create], &[]).await
    }

    pub(crate) async fn drop(&self, manager: &SchemaManager<'_>) -> Result<(), DbErr> {
        per_backend(manager, &[&format!("DROP TYPE {}", self.name)], &[]).await
    }

    /// NOT NULL column that holds one of the labels.
    pub(crate) fn column(&self, manager: &SchemaManager<'_>, table: &str, column: &'static str) -> ColumnDef {
        let mut def = enumeration(column, self.name, self.labels.iter().copied());
        if !is_postgres(manager) {
            let name = Alias::new(format!("ck_{table}_{column}"));
            def.check((name, Expr::col(column).is_in(self.labels.iter().copied())));
        }
        def
    }
}

/// NOT NULL time whose default is the current time.
pub(crate) fn timestamp_now(manager: &SchemaManager<'_>, column: &'static str) -> ColumnDef {
    let now = if is_postgres(manager) { "now()" } else { SQLITE_NOW };
    timestamp_with_time_zone(column).default(Expr::cust(now)).take()
}

/// Primary key whose default is a new UUID version 7. PostgreSQL calls `watchpost_uuid7()`, so tables
/// with such a key must come after the migration of jobs, which creates the function.
pub(crate) fn uuid7_key(manager: &SchemaManager<'_>, column: &'static str) -> ColumnDef {
    let uuid7 = if is_postgres(manager) { "watchpost_uuid7()" } else { SQLITE_UUID7 };
    uuid(column).default(Expr::cust(uuid7)).primary_key().take()
}

/// Numbered 64-bit primary key. A number is never reused, not even after a delete.
pub(crate) fn number_key(column: &'static str) -> ColumnDef {
    big_integer(column).auto_increment().primary_key().take()
}

/// Named CHECK. The name identifies the CHECK in errors of the database.
pub(crate) fn check(name: &'static str, condition: &'static str) -> Check {
    Check::named(name, Expr::cust(condition))
}

/// Named UNIQUE constraint, for `CREATE TABLE`.
pub(crate) fn unique(name: &'static str, columns: &[&'static str]) -> IndexCreateStatement {
    let mut unique = Index::create();
    unique.name(name).unique();
    for column in columns {
        unique.col(*column);
    }
    unique
}

/// Foreign key to the `id` of the parent, for `CREATE TABLE`.
pub(crate) fn references(
    table: &'static str,
    column: &'static str,
    parent: &'static str,
    on_delete: ForeignKeyAction,
) -> ForeignKeyCreateStatement {
    ForeignKey::create()
        .name(format!("fk_{table}_{column}"))
        .from(table, column)
        .to(parent, "id")
        .on_delete(on_delete)
        .take()
}

/// Creates B-tree indexes of a table, each given by its name and columns.
pub(crate) async fn indexes(
    manager: &SchemaManager<'_>,
    table: &'static str,
    indexes: &[(&str, &[&'static str])],
) -> Result<(), DbErr> {
    for (name, columns) in indexes {
        let mut index = Index::create();
        index.name(*name).table(table);
        for column in *columns {
            index.col(*column);
        }
        manager.create_index(index).await?;
    }
    Ok(())
}

/// Creates a block-range index on PostgreSQL, and a B-tree on SQLite, which has no block ranges.
pub(crate) async fn brin_index(
    manager: &SchemaManager<'_>,
    table: &str,
    name: &str,
    column: &str,
) -> Result<(), DbErr> {
    let brin = format!("CREATE INDEX {name} ON {table} USING brin ({column})");
    let plain = format!("CREATE INDEX {name} ON {table} ({column})");
    per_backend(manager, &[&brin], &[&plain]).await
}

/// Creates an inverted index on PostgreSQL only. `column` may be followed by an operator class.
pub(crate) async fn gin_index(manager: &SchemaManager<'_>, table: &str, name: &str, column: &str) -> Result<(), DbErr> {
    let gin = format!("CREATE INDEX {name} ON {table} USING gin ({column})");
    per_backend(manager, &[&gin], &[]).await
}

/// Full-text vector of a row: filled by a trigger on PostgreSQL, always NULL on SQLite.
pub(crate) fn search_vector(manager: &SchemaManager<'_>) -> ColumnDef {
    let mut column = ColumnDef::new("search_vector");
    if is_postgres(manager) {
        column.custom("tsvector");
    } else {
        column.text();
    }
    column.null().take()
}

/// Drops tables in the given order, which must name children before parents.
pub(crate) async fn drop_tables(manager: &SchemaManager<'_>, tables: &[&'static str]) -> Result<(), DbErr> {
    for table in tables {
        manager.drop_table(Table::drop().table(*table).take()).await?;
    }
    Ok(())
}
