//! The migrations can be reverted, and leave nothing behind.

use migration::{Migrator, MigratorTrait};
use sea_orm::{ConnectionTrait, Statement};

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
        Migrator::up(&db, None).await.unwrap();
        let first = catalogue::schema(backend, &db).await;

        Migrator::down(&db, None).await.unwrap();
        assert_eq!(catalogue::schema(backend, &db).await, Schema::default());
        let rest = if backend == Backend::Postgres { POSTGRES_REST } else { SQLITE_REST };
        let rest = Statement::from_string(db.get_database_backend(), rest);
        let rest = db.query_all_raw(rest).await.unwrap();
        let rest: Vec<String> = rest.iter().map(|row| row.try_get("", "name").unwrap()).collect();
        assert_eq!(rest, Vec::<String>::new());

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
        let names = Statement::from_string(db.get_database_backend(), "SELECT name FROM camera_zones ORDER BY id");
        let names = db.query_all_raw(names).await.unwrap();
        let names: Vec<String> = names.iter().map(|row| row.try_get("", "name").unwrap()).collect();
        let long = ["ü".repeat(255), format!("{} (l2)", "ü".repeat(188))];
        assert_eq!(names[..2], long);
        assert_eq!(names[2..], ["Gate (z1)", "Gate (z2)", "Gate", "Gate"]);
    }
}
