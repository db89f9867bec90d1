//! What a row takes with it when it goes, and which rows there may be once only.

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, Iterable, SqlErr, Statement, TransactionTrait,
};
use watchpost::entity::job::JobStatus;

use super::rows;
use crate::support::database::{Backend, TestDatabase, on_both};

const OF_DETECTION: &[&str] = &[
    "event_detections",
    "pose_results",
    "threat_detections",
    "demographics_results",
    "reid_embeddings",
    "action_results",
];
const OF_ALERT: &[&str] = &["alert_transitions", "alert_requests"];
const OF_EVENT: &[&str] = &[
    "event_detections",
    "event_ingests",
    "alerts",
    "alert_suppressions",
    "alert_transitions",
    "alert_requests",
    "event_feedback",
    "event_audits",
];
const OF_CAMERA: &[&str] =
    &["events", "detections", "camera_zones", "activity_baselines", "class_baselines", "alerts", "alert_suppressions"];
const OF_JOB: &[&str] = &["job_attempts", "job_logs", "job_transitions"];
const OF_RULE: &[&str] = &["alert_cooldowns", "alert_flaps"];

async fn count(tx: &DatabaseTransaction, what: &str) -> i64 {
    let query = format!("SELECT count(*) AS rows FROM {what}");
    let query = Statement::from_string(tx.get_database_backend(), query);
    tx.query_one_raw(query).await.unwrap().unwrap().try_get("", "rows").unwrap()
}

#[on_both]
async fn a_row_takes_its_children_with_it(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    rows::insert_everywhere(backend, &db).await;
    for (parent, gone, left) in [
        ("detections", vec![OF_DETECTION], vec!["events", "cameras", "logs"]),
        ("events", vec![OF_EVENT], vec!["detections", "pose_results", "alert_rules", "logs"]),
        ("cameras", vec![OF_CAMERA, OF_EVENT, OF_DETECTION], vec!["alert_rules", "logs"]),
        ("alerts", vec![OF_ALERT], vec!["alert_cooldowns", "manual_alert_cooldowns"]),
        ("jobs", vec![OF_JOB], vec!["export_jobs", "job_schedules"]),
        ("job_queues", vec![], vec!["jobs"]),
        ("job_types", vec![], vec!["jobs"]),
        ("job_schedules", vec![], vec!["jobs"]),
        ("alert_rules", vec![OF_RULE], vec!["alerts", "alert_suppressions"]),
    ] {
        let tx = db.begin().await.unwrap();
        for child in gone.concat() {
            assert_eq!(count(&tx, child).await, 1, "{child} before");
        }
        tx.execute_unprepared(&format!("DELETE FROM {parent}")).await.unwrap();
        for child in gone.concat() {
            assert_eq!(count(&tx, child).await, 0, "{child} without {parent}");
        }
        for other in left {
            assert_eq!(count(&tx, other).await, 1, "{other} without {parent}");
        }
        tx.rollback().await.unwrap();
    }
}

#[on_both]
async fn an_alert_outlives_its_rule(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    rows::insert_everywhere(backend, &db).await;
    let tx = db.begin().await.unwrap();
    tx.execute_unprepared("DELETE FROM alert_rules").await.unwrap();
    assert_eq!(count(&tx, "alerts WHERE rule_id IS NULL").await, 1);
    assert_eq!(count(&tx, "alert_suppressions WHERE rule_id IS NULL").await, 1);
}

#[on_both]
async fn a_second_row_of_the_same_key_is_refused(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    rows::insert_everywhere(backend, &db).await;
    for insert in [
        "cameras (id, name, folder_path) VALUES ('p', 'Front Porch', '/p')",
        "cameras (id, name, folder_path) VALUES ('p', 'P', '/porch')",
        "camera_zones (id, camera_id, name, coordinates) VALUES ('y', 'porch', 'Steps', '[]')",
        "activity_baselines (camera_id, hour, day_of_week) VALUES ('porch', 1, 1)",
        "class_baselines (camera_id, detection_class, hour) VALUES ('porch', 'person', 1)",
        "event_feedback (event_id, feedback_type) VALUES (1, 'correct')",
        "event_audits (event_id) VALUES (1)",
        "manual_alert_cooldowns (dedup_key, alert_id, raised_at_us, cooldown_us)
                SELECT 'porch:anyone', id, 1, 1 FROM alerts",
        "alert_transitions (alert_id, to_status, version_id, actor)
                SELECT id, 'dismissed', 1, 'bob' FROM alerts",
        "event_detections (event_id, detection_id) VALUES (1, 1)",
        "pose_results (detection_id) VALUES (1)",
        "demographics_results (detection_id) VALUES (1)",
        "reid_embeddings (detection_id) VALUES (1)",
        "action_results (detection_id) VALUES (1)",
        "job_attempts (job_id) SELECT id FROM jobs",
        "job_queues (name) VALUES ('default')",
        "job_types (name) VALUES ('export')",
    ] {
        refused(&db, &format!("INSERT INTO {insert}")).await;
    }
    let second = "INSERT INTO threat_detections
            (detection_id, threat_type, confidence, severity) VALUES (1, 'gun', 1, 'critical')";
    db.execute_unprepared(second).await.unwrap();
}

#[on_both]
async fn a_job_is_queued_once(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    rows::insert_everywhere(backend, &db).await;
    for first in [
        "UPDATE jobs SET request_id = 'r', schedule_id = id, tick_at = '2026-03-01T12:00:00+00:00'",
        "UPDATE job_logs SET line = 1",
    ] {
        db.execute_unprepared(first).await.unwrap();
    }
    let id = fresh_id(backend);
    for insert in [
        format!("jobs (id, job_type, request_id) VALUES ({id}, 'cleanup', 'r')"),
        format!("jobs (id, job_type, schedule_id, tick_at) SELECT {id}, 'cleanup', schedule_id, tick_at FROM jobs"),
        "job_logs (job_id, message, line) SELECT id, 'again', 1 FROM jobs".to_owned(),
        format!(
            "job_schedules (id, name, cron, job_type, next_tick_at)
                SELECT {id}, name, cron, job_type, next_tick_at FROM job_schedules"
        ),
    ] {
        refused(&db, &format!("INSERT INTO {insert}")).await;
    }
    for insert in [
        "job_attempts (job_id, attempt_number) SELECT id, 2 FROM jobs".to_owned(),
        "job_logs (job_id, message, line) SELECT id, 'next', 2 FROM jobs".to_owned(),
        "job_logs (job_id, message) SELECT id, 'not counted' FROM jobs".to_owned(),
        "job_logs (job_id, message) SELECT id, 'not counted' FROM jobs".to_owned(),
        format!(
            "jobs (id, job_type, schedule_id, tick_at)
                SELECT {id}, job_type, schedule_id, '2026-03-01T13:00:00+00:00' FROM jobs"
        ),
        format!("jobs (id, job_type, tick_at) VALUES ({id}, 'export', '2026-03-01T12:00:00+00:00')"),
        format!("jobs (id, job_type, tick_at) VALUES ({id}, 'export', '2026-03-01T12:00:00+00:00')"),
        format!("jobs (id, job_type, request_id) VALUES ({id}, 'export', 'R')"),
    ] {
        accepted(&db, &format!("INSERT INTO {insert}")).await;
    }
}

#[on_both]
async fn a_unique_key_holds_in_its_states_only(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    let id = fresh_id(backend);
    let all = JobStatus::iter().map(JobStatus::bit).sum::<i32>();
    assert_eq!(all, 31);
    let job = |job_type: &str, status: &str, key: &str, period: i64, states: i32| {
        format!(
            "INSERT INTO jobs (id, job_type, status, unique_key, unique_period, unique_states)
            VALUES ({id}, '{job_type}', '{status}', '{key}', {period}, {states})"
        )
    };
    for status in JobStatus::iter() {
        let (name, held) = (status.as_str(), status.bit());
        let free = format!("{name} but free");
        accepted(&db, &job("export", name, name, 1, held)).await;
        accepted(&db, &job("export", name, &free, 1, all - held)).await;
        for other in JobStatus::iter() {
            refused(&db, &job("export", other.as_str(), name, 1, all)).await;
            // What does not hold the key itself is not refused for it.
            accepted(&db, &job("export", other.as_str(), name, 1, all - other.bit())).await;
        }
        accepted(&db, &job("export", "queued", &free, 1, all)).await;
        accepted(&db, &job("export", "queued", name, 2, all)).await;
        accepted(&db, &job("cleanup", "queued", name, 1, all)).await;
    }
}

#[on_both]
async fn a_job_that_ends_frees_its_unique_key(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    let queued = JobStatus::Queued.bit() | JobStatus::Running.bit();
    let job = format!(
        "INSERT INTO jobs (id, job_type, unique_key, unique_states) VALUES ({}, 'export', 'k', {queued})",
        fresh_id(backend)
    );
    accepted(&db, &job).await;
    for held in ["running", "queued"] {
        accepted(&db, &format!("UPDATE jobs SET status = '{held}'")).await;
        refused(&db, &job).await;
    }
    accepted(&db, "UPDATE jobs SET status = 'failed'").await;
    accepted(&db, &job).await;
    refused(&db, "UPDATE jobs SET status = 'queued' WHERE status = 'failed'").await;
}

/// An expression that is another UUID with each row.
fn fresh_id(backend: Backend) -> &'static str {
    match backend {
        Backend::Sqlite => "randomblob(16)",
        Backend::Postgres => "gen_random_uuid()",
    }
}

async fn accepted(db: &DatabaseConnection, statement: &str) {
    let done = db.execute_unprepared(statement).await;
    let done = done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    assert_eq!(done.rows_affected(), 1, "{statement}");
}

async fn refused(db: &DatabaseConnection, statement: &str) {
    let error = db.execute_unprepared(statement).await.expect_err(statement);
    let unique = matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)));
    assert!(unique, "{statement}: {error}");
}
