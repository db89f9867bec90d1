//! What the two databases say differently, and the phrases that the migrations share.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, big_integer_null, enumeration, timestamp_with_time_zone, uuid},
    sea_orm::DbBackend,
};

/// The current time in the text that the ORM writes: RFC 3339 with `+00:00` and no zero
/// fraction. SQLite compares times as text, so another spelling would sort elsewhere.
pub(crate) const SQLITE_NOW: &str =
    "replace(strftime('%Y-%m-%dT%H:%M:%f', 'now'), '.000', '') || '+00:00'";

/// A UUID version 7 as the 16 bytes that the ORM writes: 48 bits of milliseconds, the
/// version, 12 random bits, the variant, 62 random bits.
const SQLITE_UUID7: &str = "unhex(\
    printf('%012x', CAST(round(unixepoch('now', 'subsec') * 1000) AS INTEGER)) \
    || '7' || substr(hex(randomblob(2)), 2) \
    || substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(8)), 2))";

pub(crate) fn is_postgres(manager: &SchemaManager<'_>) -> bool {
    manager.get_database_backend() == DbBackend::Postgres
}

/// Runs the statements of the database at hand, one after the other.
pub(crate) async fn per_backend(
    manager: &SchemaManager<'_>,
    postgres: &[&str],
    sqlite: &[&str],
) -> Result<(), DbErr> {
    let statements = if is_postgres(manager) {
        postgres
    } else {
        sqlite
    };
    for statement in statements {
        manager
            .get_connection()
            .execute_unprepared(statement)
            .await?;
    }
    Ok(())
}

/// A closed set of labels: a native type on PostgreSQL, a CHECK on SQLite.
pub(crate) struct Vocabulary {
    /// The name of the type on PostgreSQL.
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

    /// A column that holds one of the labels, and never NULL.
    pub(crate) fn column(
        &self,
        manager: &SchemaManager<'_>,
        table: &str,
        column: &'static str,
    ) -> ColumnDef {
        let mut def = enumeration(column, self.name, self.labels.iter().copied());
        if !is_postgres(manager) {
            let name = Alias::new(format!("ck_{table}_{column}"));
            def.check((name, Expr::col(column).is_in(self.labels.iter().copied())));
        }
        def
    }
}

/// A point in time that is the current one unless the writer says otherwise.
pub(crate) fn timestamp_now(manager: &SchemaManager<'_>, column: &'static str) -> ColumnDef {
    let now = if is_postgres(manager) {
        "now()"
    } else {
        SQLITE_NOW
    };
    timestamp_with_time_zone(column)
        .default(Expr::cust(now))
        .take()
}

/// A primary key that is a new UUID version 7 unless the writer brings one. On PostgreSQL
/// it calls `watchpost_uuid7()`, which the migration of the jobs makes.
pub(crate) fn uuid7_key(manager: &SchemaManager<'_>, column: &'static str) -> ColumnDef {
    let uuid7 = if is_postgres(manager) {
        "watchpost_uuid7()"
    } else {
        SQLITE_UUID7
    };
    uuid(column).default(Expr::cust(uuid7)).primary_key().take()
}

/// A numbered primary key. It never gives a number twice, not even after a delete.
pub(crate) fn number_key(column: &'static str) -> ColumnDef {
    big_integer(column).auto_increment().primary_key().take()
}

/// A count or size that a 32-bit number may be too small for.
pub(crate) fn wide_null(column: &'static str) -> ColumnDef {
    big_integer_null(column)
}

/// A CHECK under a name, so that its violation can be told from others.
pub(crate) fn check(name: &'static str, condition: &'static str) -> Check {
    Check::named(name, Expr::cust(condition))
}

/// A UNIQUE constraint under a name, to be put into `CREATE TABLE`.
pub(crate) fn unique(name: &'static str, columns: &[&'static str]) -> IndexCreateStatement {
    let mut unique = Index::create();
    unique.name(name).unique();
    for column in columns {
        unique.col(*column);
    }
    unique
}

/// A foreign key to the `id` of the parent, to be put into `CREATE TABLE`.
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

/// The B-tree indexes of a table: their names and columns.
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

/// A block-range index on PostgreSQL, an ordinary one on SQLite, which has no such thing.
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

/// An inverted index, with an operator class if `column` names one. On PostgreSQL only.
pub(crate) async fn gin_index(
    manager: &SchemaManager<'_>,
    table: &str,
    name: &str,
    column: &str,
) -> Result<(), DbErr> {
    let gin = format!("CREATE INDEX {name} ON {table} USING gin ({column})");
    per_backend(manager, &[&gin], &[]).await
}

/// The full text of a row: filled by a trigger on PostgreSQL, unused on SQLite.
pub(crate) fn search_vector(manager: &SchemaManager<'_>) -> ColumnDef {
    let mut column = ColumnDef::new("search_vector");
    if is_postgres(manager) {
        column.custom("tsvector");
    } else {
        column.text();
    }
    column.null().take()
}

/// Drops tables in the given order, children first.
pub(crate) async fn drop_tables(
    manager: &SchemaManager<'_>,
    tables: &[&'static str],
) -> Result<(), DbErr> {
    for table in tables {
        manager
            .drop_table(Table::drop().table(*table).take())
            .await?;
    }
    Ok(())
}
