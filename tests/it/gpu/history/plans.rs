//! How the newest sample of a GPU is found, however many samples there are.

use sea_orm::{QueryTrait, Statement};

use super::*;

on_both! {
    async fn the_newest_sample_of_a_gpu_is_looked_up_and_never_searched_for(backend) {
        let database = TestDatabase::migrated(backend).await;
        let db = database.connect().await;
        let start = midnight(2);
        // Sixteen GPUs, one of which is gone since long.
        for gpu in 0..16 {
            let count = if gpu == 0 { 400 } else { 600 };
            let rows: Vec<_> = (0..count).map(|at| Row::warm(start + at * 1_000, 50.0)).collect();
            insert(&db, &format!("GPU-{gpu:02}"), &rows).await;
        }
        db.execute_unprepared("ANALYZE").await.unwrap();
        let newest = gpu_stats::Entity::newest_of("GPU-00");
        let row = newest.clone().one(&db).await.unwrap().unwrap();
        assert_eq!(row.recorded_at.timestamp_millis(), start + 399_000);
        let query = QueryTrait::build(&sea_orm::QuerySelect::limit(newest, 1), db.get_database_backend());
        let explain = match backend {
            Backend::Sqlite => "EXPLAIN QUERY PLAN",
            Backend::Postgres => "EXPLAIN (ANALYZE, TIMING OFF)",
        };
        let explain = Statement { sql: format!("{explain} {}", query.sql), ..query };
        let column = if backend == Backend::Sqlite { "detail" } else { "QUERY PLAN" };
        let plan = db.query_all_raw(explain).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.try_get("", column).unwrap()).collect();
        let plan = plan.join("\n");
        assert!(plan.contains("idx_gpu_stats_gpu_uuid_recorded_at"), "{plan}");
        assert!(!plan.contains("Filter") && !plan.contains("Seq Scan"), "{plan}");
        assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{plan}");
    }
}
