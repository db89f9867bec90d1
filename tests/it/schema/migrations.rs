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

on_both! {
    async fn migrations_go_down_and_up_again(backend) {
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

    async fn zones_of_one_name_get_their_id_added(backend) {
        let database = TestDatabase::empty(backend).await;
        let db = database.connect().await;
        let before = Migrator::migrations().iter().position(|migration| migration.name().ends_with("_zone_anchors"));
        Migrator::up(&db, before.map(|steps| u32::try_from(steps).unwrap())).await.unwrap();
        for insert in [
            "INSERT INTO cameras (id, name, folder_path) VALUES ('a', 'a', 'a'), ('b', 'b', 'b')".to_string(),
            format!(
                "INSERT INTO camera_zones (id, camera_id, name, coordinates, created_at) VALUES
                ('z3', 'a', 'Gate', '[]', '2026-01-01T00:00:00+00:00'),
                ('z1', 'a', 'Gate', '[]', '2026-01-02T00:00:00+00:00'),
                ('z2', 'a', 'Gate', '[]', '2026-01-02T00:00:00+00:00'),
                ('z4', 'b', 'Gate', '[]', '2026-01-03T00:00:00+00:00'),
                ('l1', 'b', '{long}', '[]', '2026-01-03T00:00:00+00:00'),
                ('l2', 'b', '{long}', '[]', '2026-01-03T00:00:00+00:00')",
                long = "ü".repeat(255)
            ),
        ] {
            db.execute_unprepared(&insert).await.unwrap();
        }
        Migrator::up(&db, Some(1)).await.unwrap();
        let names = names(&db, "SELECT name FROM camera_zones ORDER BY id").await;
        let long = ["ü".repeat(255), format!("{} (l2)", "ü".repeat(188))];
        assert_eq!(names[..2], long);
        assert_eq!(names[2..], ["Gate (z1)", "Gate (z2)", "Gate", "Gate"]);
    }

    async fn jobs_that_were_there_are_adopted(backend) {
        let database = TestDatabase::empty(backend).await;
        let db = database.connect().await;
        let before = Migrator::migrations().iter().position(|migration| migration.name().ends_with("_job_queue"));
        Migrator::up(&db, before.map(|steps| u32::try_from(steps).unwrap())).await.unwrap();
        for insert in [
            "jobs (id, job_type, status, queue_name, attempt_number) VALUES
                ($1, 'a', 'queued', NULL, 1), ($2, 'b', 'queued', 'media', 1), ($3, 'c', 'completed', NULL, 1),
                ($4, 'd', 'failed', 'media', 9)",
            "job_attempts (job_id, attempt_number, started_at, worker_id) VALUES
                ($1, 1, '2026-01-02T00:00:00+00:00', 'second'), ($1, 1, '2026-01-01T00:00:00+00:00', 'first'),
                ($1, 7, '2026-01-03T00:00:00+00:00', 'third'), ($3, 5, '2026-01-01T00:00:00+00:00', 'fifth'),
                ($4, 2, '2026-01-01T00:00:00+00:00', 'kept')",
            "job_logs (job_id, message) VALUES ($1, 'one'), ($1, 'two')",
        ] {
            let insert = with_ids(backend, insert);
            db.execute_unprepared(&format!("INSERT INTO {insert}")).await.unwrap();
        }
        Migrator::up(&db, Some(1)).await.unwrap();

        let jobs = "SELECT job_type || ' ' || coalesce(queue_name, 'none') || ' ' || attempt_number AS name
            FROM jobs WHERE scheduled_at = created_at ORDER BY job_type";
        assert_eq!(names(&db, jobs).await, ["a default 3", "b media 1", "c none 5", "d media 9"]);
        let attempts = "SELECT worker_id || ' ' || attempt_number AS name FROM job_attempts ORDER BY job_id, attempt_number";
        assert_eq!(names(&db, attempts).await, ["first 1", "second 2", "third 3", "fifth 5", "kept 2"]);
    }
}

/// Puts UUIDs where `$1` and so on stand.
fn with_ids(backend: Backend, text: &str) -> String {
    let quote = if backend == Backend::Postgres {
        "'"
    } else {
        "x'"
    };
    (1..=4).fold(text.to_owned(), |text, number| {
        text.replace(&format!("${number}"), &format!("{quote}{number:032x}'"))
    })
}

async fn names(db: &DatabaseConnection, query: &str) -> Vec<String> {
    let query = Statement::from_string(db.get_database_backend(), query);
    let rows = db.query_all_raw(query).await.unwrap();
    rows.iter()
        .map(|row| row.try_get("", "name").unwrap())
        .collect()
}
