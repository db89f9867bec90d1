//! Every table, column, constraint and index is as described, and there is nothing else.

use super::{catalogue, expected};
use crate::support::database::{Backend, TestDatabase, on_both};

on_both! {
    async fn the_schema_is_the_one_described(backend) {
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
}
