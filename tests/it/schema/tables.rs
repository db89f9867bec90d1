//! Every table, column, constraint and index is as described, and there is nothing else.

use sea_orm::{ConnectionTrait, Statement, TransactionTrait};

use super::{catalogue, expected, rows};
use crate::support::database::{Backend, TestDatabase, on_both};

#[on_both]
async fn the_schema_is_the_one_described(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    let found = catalogue::schema(backend, &db).await;
    let mut expected = expected::schema(backend);
    if backend == Backend::Postgres {
        let checks = expected.tables.values_mut().flat_map(|table| table.checks.values_mut());
        checks.for_each(String::clear);
    }
    let names = |schema: &expected::Schema| schema.tables.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected));
    assert_eq!(found.enums, expected.enums);
    for (name, table) in expected.tables {
        assert_eq!(found.tables[&name].columns, table.columns, "columns of {name}");
        assert_eq!(found.tables[&name].indexes, table.indexes, "indexes of {name}");
        assert_eq!(found.tables[&name], table, "{name}");
    }
}

/// An update that changes no indexed column writes no index, where there is room in the page.
#[tokio::test]
async fn a_heartbeat_writes_no_index_on_postgres() {
    let database = TestDatabase::migrated(Backend::Postgres).await;
    let db = database.connect().await;
    rows::insert_everywhere(Backend::Postgres, &db).await;
    let tx = db.begin().await.unwrap();
    for (update, hot) in [
        ("lease_expires_at = now(), heartbeat_at = now()", 1),
        ("progress_percent = 50, progress_at = now()", 2),
        ("log_lines = 1, items_processed = 1", 3),
        ("status = 'running'", 3),
    ] {
        tx.execute_unprepared(&format!("UPDATE jobs SET {update}")).await.unwrap();
        let query = "SELECT pg_stat_get_xact_tuples_hot_updated('jobs'::regclass) AS hot";
        let query = Statement::from_string(tx.get_database_backend(), query);
        let row = tx.query_one_raw(query).await.unwrap().unwrap();
        assert_eq!(row.try_get::<i64>("", "hot").unwrap(), hot, "{update}");
    }
}
