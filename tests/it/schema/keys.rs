//! What a row takes with it when it goes, and which rows there may be once only.

use sea_orm::{ConnectionTrait, DatabaseTransaction, SqlErr, Statement, TransactionTrait};

use super::rows;
use crate::support::database::{TestDatabase, on_both};

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
const OF_CAMERA: &[&str] = &[
    "events",
    "detections",
    "camera_zones",
    "activity_baselines",
    "class_baselines",
    "alerts",
    "alert_suppressions",
];
const OF_JOB: &[&str] = &["job_attempts", "job_logs", "job_transitions"];
const OF_RULE: &[&str] = &["alert_cooldowns", "alert_flaps"];

async fn count(tx: &DatabaseTransaction, what: &str) -> i64 {
    let query = format!("SELECT count(*) AS rows FROM {what}");
    let query = Statement::from_string(tx.get_database_backend(), query);
    tx.query_one_raw(query)
        .await
        .unwrap()
        .unwrap()
        .try_get("", "rows")
        .unwrap()
}

on_both! {
    async fn a_row_takes_its_children_with_it(backend) {
        let database = TestDatabase::migrated(backend).await;
        let db = database.connect().await;
        rows::insert_everywhere(backend, &db).await;
        for (parent, gone, left) in [
            ("detections", vec![OF_DETECTION], vec!["events", "cameras", "logs"]),
            ("events", vec![OF_EVENT], vec!["detections", "pose_results", "alert_rules", "logs"]),
            ("cameras", vec![OF_CAMERA, OF_EVENT, OF_DETECTION], vec!["alert_rules", "logs"]),
            ("alerts", vec![OF_ALERT], vec!["alert_cooldowns", "manual_alert_cooldowns"]),
            ("jobs", vec![OF_JOB], vec!["export_jobs"]),
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

    async fn an_alert_outlives_its_rule(backend) {
        let database = TestDatabase::migrated(backend).await;
        let db = database.connect().await;
        rows::insert_everywhere(backend, &db).await;
        let tx = db.begin().await.unwrap();
        tx.execute_unprepared("DELETE FROM alert_rules").await.unwrap();
        assert_eq!(count(&tx, "alerts WHERE rule_id IS NULL").await, 1);
        assert_eq!(count(&tx, "alert_suppressions WHERE rule_id IS NULL").await, 1);
    }

    async fn a_second_row_of_the_same_key_is_refused(backend) {
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
        ] {
            let insert = format!("INSERT INTO {insert}");
            let error = db.execute_unprepared(&insert).await.expect_err(&insert);
            let refused = matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)));
            assert!(refused, "{insert}: {error}");
        }
        let second = "INSERT INTO threat_detections
            (detection_id, threat_type, confidence, severity) VALUES (1, 'gun', 1, 'critical')";
        db.execute_unprepared(second).await.unwrap();
    }
}
