//! The migrations can be reverted, and leave nothing behind.

use migration::{Migrator, MigratorTrait};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};

use super::{catalogue, expected::Schema};
use crate::support::database::{Backend, TestDatabase, on_both};

/// Functions, which no table takes with it, and everything in an SQLite file.
const POSTGRES_REST: &str = "SELECT proname AS name FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace";
const SQLITE_REST: &str = "SELECT name FROM sqlite_schema
    WHERE name NOT LIKE 'sqlite_%' AND name <> 'seaql_migrations'";

#[on_both]
async fn migrations_go_down_and_up_again(backend: Backend) {
    let database = TestDatabase::empty(backend).await;
    let db = database.connect().await;
    let mut before = Vec::new();
    for migration in Migrator::migrations() {
        before.push((migration.name().to_owned(), catalogue::schema(backend, &db).await));
        Migrator::up(&db, Some(1)).await.unwrap();
    }
    let first = catalogue::schema(backend, &db).await;

    for (name, schema) in before.into_iter().rev() {
        Migrator::down(&db, Some(1)).await.unwrap();
        assert_eq!(catalogue::schema(backend, &db).await, schema, "without {name}");
    }
    assert_eq!(catalogue::schema(backend, &db).await, Schema::default());
    let rest = if backend == Backend::Postgres { POSTGRES_REST } else { SQLITE_REST };
    assert_eq!(names(&db, rest).await, Vec::<String>::new());

    Migrator::up(&db, None).await.unwrap();
    assert_eq!(catalogue::schema(backend, &db).await, first);
}

async fn names(db: &DatabaseConnection, query: &str) -> Vec<String> {
    let query = Statement::from_string(db.get_database_backend(), query);
    let rows = db.query_all_raw(query).await.unwrap();
    rows.iter().map(|row| row.try_get("", "name").unwrap()).collect()
}
