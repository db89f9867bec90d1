//! What bare SQL reaches that writes the same rows: a job's row twice, an attempt, two transitions; in batches of 500,
//! on PostgreSQL over two connections.

use std::time::Instant;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, SqliteTransactionMode, Statement, TransactionOptions,
    TransactionTrait,
};
use watchpost::db::BY_KEY;

use crate::{
    jobs::{JOBS, connect, enqueue},
    per_second,
    server::Server,
};

const BATCH: usize = 500;

const CLAIM_POSTGRES: &str = "WITH due AS (\
    SELECT id, watchpost_uuid7() AS lease FROM jobs WHERE status = 'queued' AND queue_name = 'default' \
        AND job_type = 'no_op' AND priority = 2 AND concurrency_key = '' AND scheduled_at <= now() \
    ORDER BY scheduled_at, id LIMIT 500 FOR UPDATE SKIP LOCKED), \
    running AS (UPDATE jobs SET status = 'running', started_at = now(), lease_id = due.lease, worker_id = 'w', \
        lease_ms = 3000, lease_expires_at = now() + interval '3 s', heartbeat_at = now(), \
        attempt_deadline_at = now() + interval '600 s', version_id = version_id + 1, transitioned_at = now() \
    FROM due WHERE jobs.id = due.id RETURNING jobs.id, jobs.lease_id), \
    attempts AS (INSERT INTO job_attempts (job_id, attempt_number, started_at, status, worker_id, lease_id) \
    SELECT id, 1, now(), 'started', 'w', lease_id FROM running), \
    transitions AS (INSERT INTO job_transitions (job_id, from_status, to_status, transitioned_at, triggered_by, \
        version_id, attempt_number, actor) \
    SELECT id, 'queued', 'running', now(), 'worker', 2, 1, 'w' FROM running) \
    SELECT string_agg(id::text, ',') AS ids, count(*) AS jobs FROM running";

const COMPLETE_POSTGRES: &str = "WITH done AS (\
    UPDATE jobs SET status = 'completed', completed_at = now(), progress_percent = 100, lease_id = NULL, \
        lease_expires_at = NULL, attempt_deadline_at = NULL, version_id = version_id + 1, transitioned_at = now() \
    FROM unnest(string_to_array($1, ',')::uuid[]) AS v(done_id) \
    WHERE id = v.done_id RETURNING id), \
    attempts AS (UPDATE job_attempts SET status = 'succeeded', ended_at = now(), outcome = 'succeeded' \
    FROM done WHERE job_id = done.id) \
    INSERT INTO job_transitions (job_id, from_status, to_status, transitioned_at, triggered_by, version_id, \
        attempt_number, actor) \
    SELECT id, 'running', 'completed', now(), 'worker', 3, 1, 'w' FROM done";

/// The jobs at hand are kept in a table of their own, for a temporary one would belong to one connection.
const CLAIM_SQLITE: [&str; 5] = [
    "DELETE FROM bench_due",
    "INSERT INTO bench_due SELECT id, randomblob(16) FROM jobs WHERE status = 'queued' AND queue_name = 'default' \
        AND job_type = 'no_op' AND priority = 2 AND concurrency_key = '' ORDER BY scheduled_at, id LIMIT 500",
    "UPDATE jobs SET status = 'running', started_at = max(created_at, '2026-01-01T00:00:00+00:00'), \
        lease_id = due.lease, worker_id = 'w', lease_ms = 3000, lease_expires_at = '2030-01-01T00:00:00+00:00', \
        heartbeat_at = '2030-01-01T00:00:00+00:00', attempt_deadline_at = '2030-01-01T00:00:00+00:00', \
        version_id = version_id + 1, transitioned_at = '2030-01-01T00:00:00+00:00' \
        FROM bench_due AS due WHERE jobs.id = due.id",
    "INSERT INTO job_attempts (job_id, attempt_number, status, worker_id, lease_id) \
        SELECT id, 1, 'started', 'w', lease FROM bench_due",
    "INSERT INTO job_transitions (job_id, from_status, to_status, triggered_by, version_id, attempt_number, actor) \
        SELECT id, 'queued', 'running', 'worker', 2, 1, 'w' FROM bench_due",
];

const COMPLETE_SQLITE: [&str; 3] = [
    "UPDATE jobs SET status = 'completed', completed_at = '2030-01-01T00:00:00+00:00', progress_percent = 100, \
        lease_id = NULL, lease_expires_at = NULL, attempt_deadline_at = NULL, version_id = version_id + 1, \
        transitioned_at = '2030-01-01T00:00:00+00:00' FROM bench_due AS due WHERE jobs.id = due.id",
    "UPDATE job_attempts SET status = 'succeeded', ended_at = '2030-01-01T00:00:00+00:00', outcome = 'succeeded' \
        FROM bench_due AS due WHERE job_attempts.job_id = due.id AND attempt_number = 1",
    "INSERT INTO job_transitions (job_id, from_status, to_status, triggered_by, version_id, attempt_number, actor) \
        SELECT id, 'running', 'completed', 'worker', 3, 1, 'w' FROM bench_due",
];

/// Jobs a second until none is left. PostgreSQL's planner is kept to indexes, as by the server.
pub async fn drain(server: &Server) -> f64 {
    enqueue(server.connect().await, JOBS).await;
    let db = connect(server, &BY_KEY).await;
    db.execute_unprepared("ANALYZE").await.unwrap();
    // No worker is connected, so that the server leaves the jobs alone.
    let begun = Instant::now();
    if db.get_database_backend() == DbBackend::Postgres {
        let connections = (0..2).map(|_| tokio::spawn(drain_postgres(db.clone())));
        for connection in connections.collect::<Vec<_>>() {
            connection.await.unwrap();
        }
    } else {
        drain_sqlite(&db).await;
    }
    per_second(JOBS, begun.elapsed())
}

async fn drain_postgres(db: DatabaseConnection) {
    loop {
        let claim = Statement::from_string(DbBackend::Postgres, CLAIM_POSTGRES);
        let row = db.query_one_raw(claim).await.unwrap().unwrap();
        let ids: Option<String> = row.try_get("", "ids").unwrap();
        let Some(ids) = ids else { return };
        let values = [ids.into()];
        let complete = Statement::from_sql_and_values(DbBackend::Postgres, COMPLETE_POSTGRES, values);
        db.execute_raw(complete).await.unwrap();
    }
}

async fn drain_sqlite(db: &DatabaseConnection) {
    let options =
        || TransactionOptions { sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate), ..Default::default() };
    db.execute_unprepared("CREATE TABLE bench_due (id BLOB PRIMARY KEY, lease BLOB)").await.unwrap();
    for _ in 0..JOBS / BATCH {
        for statements in [&CLAIM_SQLITE[..], &COMPLETE_SQLITE] {
            let tx = db.begin_with_options(options()).await.unwrap();
            for sql in statements {
                tx.execute_unprepared(sql).await.unwrap();
            }
            tx.commit().await.unwrap();
        }
    }
    db.execute_unprepared("DROP TABLE bench_due").await.unwrap();
}

/// Jobs that are finished, with their attempts and transitions. Their references are right, and need no check.
pub async fn fill(server: &Server, jobs: usize) {
    let db = connect(server, &[("session_replication_role", "replica")]).await;
    let postgres = db.get_database_backend() == DbBackend::Postgres;
    let (uuid, now, series) = if postgres {
        ("watchpost_uuid7()", "now()", format!("generate_series(1, {jobs}) AS n"))
    } else {
        let series = format!(
            "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {jobs}) SELECT n FROM s)"
        );
        ("randomblob(16)", "strftime('%Y-%m-%dT%H:%M:%f', 'now') || '+00:00'", series)
    };
    let statements = [
        format!(
            "INSERT INTO jobs (id, job_type, status, queue_name, priority, scheduled_at, created_at, started_at, \
            completed_at, progress_percent, version_id, transitioned_at, worker_id) \
            SELECT {uuid}, 'no_op', 'completed', 'default', 2, {now}, {now}, {now}, {now}, 100, 3, {now}, 'w' \
            FROM {series}"
        ),
        "INSERT INTO job_attempts (job_id, attempt_number, status, outcome, worker_id) \
        SELECT id, 1, 'succeeded', 'succeeded', 'w' FROM jobs"
            .to_string(),
        "INSERT INTO job_transitions (job_id, from_status, to_status, triggered_by, version_id, attempt_number) \
        SELECT id, 'queued', 'running', 'worker', 2, 1 FROM jobs"
            .to_string(),
        "INSERT INTO job_transitions (job_id, from_status, to_status, triggered_by, version_id, attempt_number) \
        SELECT id, 'running', 'completed', 'worker', 3, 1 FROM jobs"
            .to_string(),
    ];
    for sql in statements {
        db.execute_unprepared(&sql).await.unwrap();
    }
    if postgres {
        db.execute_unprepared("VACUUM ANALYZE").await.unwrap();
    }
}
