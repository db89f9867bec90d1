//! How the newest sample of a GPU is found, however many samples there are.

use sea_orm::{QueryTrait, Statement};

use super::*;

#[on_both]
async fn the_newest_sample_of_a_gpu_is_looked_up_and_never_searched_for(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    let start = midnight(2);
    // Eight GPUs that are sampled in turn, one of which is gone half of the time.
    let mut rows = Vec::new();
    for second in 0..2_000 {
        let gpus = if second < 1_000 { 0..8 } else { 1..8 };
        let row = Row::warm(start + second * 1_000, 50.0);
        rows.extend(gpus.map(|gpu| model(&format!("GPU-{gpu}"), &row)));
    }
    insert_all(&db, rows).await;
    db.execute_unprepared("ANALYZE").await.unwrap();
    let newest = gpu_stats::Entity::newest_of("GPU-0");
    let row = newest.clone().one(&db).await.unwrap().unwrap();
    assert_eq!(row.recorded_at.timestamp_millis(), start + 999_000);
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
