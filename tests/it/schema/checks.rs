//! Every CHECK refuses what it is there for, and nothing else.

use std::collections::BTreeSet;

use sea_orm::{ActiveEnum, ConnectionTrait, DatabaseConnection, DbErr, RuntimeErr};
use watchpost::entity::{
    Severity, alert_suppression, audit_log, camera, camera_zone, delivery, demographics_result, detection, event,
    event_feedback, job, job_attempt, job_log, job_schedule, log, notification_channel, pose_result, threat_detection,
};

use super::{catalogue, expected, rows};
use crate::support::database::{Backend, TestDatabase, on_both};

/// A CHECK, its table and column, the values that it refuses, and some that pass.
#[rustfmt::skip]
const CASES: &[(&str, &str, &str, &str, &str)] = &[
    ("ck_cameras_status", "cameras", "status", "'Online'", ""),
    ("ck_events_risk_level", "events", "risk_level", "'none'", "NULL"),
    ("ck_events_risk_score_range", "events", "risk_score", "-1 | 101", "0 | 100 | NULL"),
    ("ck_events_time_order", "events", "ended_at", "$earlier", "started_at | $later | NULL"),
    ("ck_detections_media_type", "detections", "media_type", "'audio'", "NULL"),
    ("ck_detections_confidence_range", "detections", "confidence", "-0.1 | 1.1", "0 | 1 | NULL"),
    ("ck_audit_logs_status", "audit_logs", "status", "'denied'", ""),
    ("ck_logs_level", "logs", "level", "'info' | 'TRACE'", ""),
    ("ck_logs_source", "logs", "source", "'ai'", ""),
    ("ck_alert_rules_risk_threshold_range", "alert_rules", "risk_threshold", "-1 | 101", "0 | 100 | NULL"),
    ("ck_alert_rules_min_confidence_range", "alert_rules", "min_confidence", "-0.1 | 1.1", "0 | 1 | NULL"),
    ("ck_alert_rules_cooldown_non_negative", "alert_rules", "cooldown_seconds", "-1", "0"),
    ("ck_activity_baselines_hour_range", "activity_baselines", "hour", "-1 | 24", "0 | 23"),
    ("ck_activity_baselines_dow_range", "activity_baselines", "day_of_week", "-1 | 7", "0 | 6"),
    ("ck_class_baselines_hour_range", "class_baselines", "hour", "-1 | 24", "0 | 23"),
    ("ck_alert_rules_flap_threshold_range", "alert_rules", "flap_threshold", "0, flap_window_seconds = 9 | 10001, flap_window_seconds = 9", "1, flap_window_seconds = 9 | 10000, flap_window_seconds = 9 | NULL, flap_window_seconds = NULL"),
    ("ck_alert_rules_flap_window", "alert_rules", "flap_window_seconds", "9 | NULL, flap_threshold = 9 | 0, flap_threshold = 9 | 86401, flap_threshold = 9", "1, flap_threshold = 9 | 86400, flap_threshold = 9 | NULL, flap_threshold = NULL"),
    ("ck_alert_suppressions_reason", "alert_suppressions", "reason", "'paused' | 'Silenced'", "'snoozed' | 'flapping' | 'cooldown'"),
    ("ck_silences_time_order", "silences", "ends_at", "$earlier", "starts_at | $later"),
    ("ck_camera_zones_priority_non_negative", "camera_zones", "priority", "-1", "0 | 1000"),
    ("ck_camera_zones_color_hex", "camera_zones", "color", "'blue' | '#12345' | '#12345g' | '1234567' | ''", "'#09afAF' | '#FFFFFF'"),
    ("ck_camera_zones_anchor", "camera_zones", "anchor", "'Center' | 'middle'", "'foot' | 'overlap'"),
    ("ck_camera_zones_min_overlap_range", "camera_zones", "min_overlap", "0 | -0.1 | 1.1", "0.001 | 1 | NULL"),
    ("ck_jobs_status", "jobs", "status", "'aborting'", ""),
    ("ck_jobs_progress_range", "jobs", "progress_percent", "-1 | 101", "0 | 100"),
    ("ck_jobs_priority_range", "jobs", "priority", "-1 | 5", "0 | 4"),
    ("ck_jobs_attempt_number_min", "jobs", "attempt_number", "0", "1"),
    ("ck_jobs_max_attempts_min", "jobs", "max_attempts", "0", "1"),
    ("ck_jobs_completed_after_created", "jobs", "completed_at", "$earlier", "created_at | NULL"),
    ("ck_jobs_started_after_created", "jobs", "started_at", "$earlier", "created_at | NULL"),
    ("ck_job_attempts_status", "job_attempts", "status", "'completed'", ""),
    ("ck_job_attempts_attempt_number", "job_attempts", "attempt_number", "0", "1"),
    ("ck_job_attempts_time_order", "job_attempts", "ended_at", "$earlier", "started_at | NULL"),
    ("ck_job_logs_level", "job_logs", "level", "'INFO'", ""),
    ("ck_job_logs_attempt_number", "job_logs", "attempt_number", "0", "1"),
    ("ck_job_queues_max_running_min", "job_queues", "max_running", "-1 | 0", "1 | NULL"),
    ("ck_job_queues_max_running_per_key_min", "job_queues", "max_running_per_key", "-1 | 0", "1 | NULL"),
    ("ck_job_types_priority_range", "job_types", "priority", "-1 | 5", "0 | 4 | NULL"),
    ("ck_job_types_max_attempts_min", "job_types", "max_attempts", "0", "1 | NULL"),
    ("ck_job_types_max_rescues_min", "job_types", "max_rescues", "-1", "0 | NULL"),
    ("ck_job_schedules_missed_policy", "job_schedules", "missed_policy", "'run_last' | 'Skip'", ""),
    ("ck_job_schedules_priority_range", "job_schedules", "priority", "-1 | 5", "0 | 4 | NULL"),
    ("ck_job_schedules_max_attempts_min", "job_schedules", "max_attempts", "0", "1 | NULL"),
    ("ck_export_jobs_progress_range", "export_jobs", "progress_percent", "-1 | 101", "100"),
    ("ck_export_jobs_processed_non_negative", "export_jobs", "processed_items", "-1", "0"),
    ("ck_export_jobs_total_non_negative", "export_jobs", "total_items", "-1", "0 | NULL"),
    ("ck_export_jobs_size_non_negative", "export_jobs", "output_size_bytes", "-1", "5000000000 | NULL"),
    ("ck_export_jobs_download_count_non_negative", "export_jobs", "download_count", "-1", "1"),
    ("ck_export_jobs_retention_days_positive", "export_jobs", "retention_days", "0", "1 | NULL"),
    ("ck_backup_progress_range", "backup_jobs", "progress_percent", "-1 | 101", "100"),
    ("ck_restore_progress_range", "restore_jobs", "progress_percent", "-1 | 101", "100"),
    ("ck_event_feedback_type", "event_feedback", "feedback_type", "'wrong'", ""),
    ("ck_event_feedback_expected_severity", "event_feedback", "expected_severity", "'none'", "NULL"),
    ("ck_event_audits_enrichment_range", "event_audits", "enrichment_utilization", "-0.1 | 1.1", "1"),
    ("ck_event_audits_context_score_range", "event_audits", "context_usage_score", "0.9 | 5.1", "1 | 5 | NULL"),
    ("ck_event_audits_reasoning_score_range", "event_audits", "reasoning_coherence_score", "0.9 | 5.1", "1 | NULL"),
    ("ck_event_audits_risk_justification_range", "event_audits", "risk_justification_score", "0.9 | 5.1", "1 | NULL"),
    ("ck_event_audits_consistency_score_range", "event_audits", "consistency_score", "0.9 | 5.1", "1 | NULL"),
    ("ck_event_audits_overall_score_range", "event_audits", "overall_quality_score", "0.9 | 5.1", "1 | NULL"),
    ("ck_pose_results_confidence_range", "pose_results", "confidence", "-0.1 | 1.1", "0 | 1 | NULL"),
    ("ck_pose_results_pose_class", "pose_results", "pose_class", "'running'", "NULL"),
    ("ck_threat_detections_confidence_range", "threat_detections", "confidence", "-0.1 | 1.1", "0 | 1"),
    ("ck_threat_detections_severity", "threat_detections", "severity", "'none'", ""),
    ("ck_threat_detections_threat_type", "threat_detections", "threat_type", "'rifle'", ""),
    ("ck_demographics_results_age_confidence_range", "demographics_results", "age_confidence", "-0.1 | 1.1", "1 | NULL"),
    ("ck_demographics_results_gender_confidence_range", "demographics_results", "gender_confidence", "-0.1 | 1.1", "1 | NULL"),
    ("ck_demographics_results_gender", "demographics_results", "gender", "'Male'", "NULL"),
    ("ck_demographics_results_age_range", "demographics_results", "age_range", "'21-35'", "NULL"),
    ("ck_action_results_confidence_range", "action_results", "confidence", "-0.1 | 1.1", "0 | 1 | NULL"),
    ("ck_gpu_events_kind", "gpu_events", "kind", "'XID' | 'found'", ""),
    ("ck_gpu_events_source", "gpu_events", "source", "'nvml'", ""),
    ("ck_gpu_events_occurrences_positive", "gpu_events", "occurrences", "0", "5000000000"),
    ("ck_gpus_state", "gpus", "state", "'gone'", "NULL"),
    ("ck_gpus_memory_pressure", "gpus", "memory_pressure", "'none'", "NULL"),
    ("ck_notification_channels_kind", "notification_channels", "kind", "'Webhook' | 'push'", ""),
    ("ck_notification_channels_quiet_except", "notification_channels", "quiet_except", "'none'", "NULL"),
    ("ck_deliveries_status", "deliveries", "status", "'failed'", ""),
    ("ck_deliveries_severity", "deliveries", "severity", "'none'", ""),
    ("ck_deliveries_queued_has_next_attempt", "deliveries", "next_attempt_at", "NULL", "$later"),
    ("ck_feed_incarnations_kind", "feed_incarnations", "kind", "'end'", "'start'"),
    ("ck_feed_state_one_row", "feed_state", "id", "2", "1"),
    ("ck_gpu_history_state_one_row", "gpu_history_state", "id", "2", "1"),
];

const EARLIER: &str = "'2020-01-01T00:00:00+00:00'";
const LATER: &str = "'2130-01-01T00:00:00+00:00'";

/// Gives the only row of the table another value.
async fn assign(db: &DatabaseConnection, table: &str, column: &str, value: &str) -> Result<(), DbErr> {
    let value = value.replace("$later", LATER).replace("$earlier", EARLIER);
    let update = format!("UPDATE {table} SET {column} = {value}");
    let updated = db.execute_unprepared(&update).await?;
    assert_eq!(updated.rows_affected(), 1, "{update}");
    Ok(())
}

/// The database's own code of the error and its text.
fn code(error: DbErr) -> (String, String) {
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) = error else {
        panic!("not an error of the database: {error}");
    };
    let error = error.as_database_error().expect("an error of the database");
    (error.code().unwrap_or_default().into_owned(), error.message().to_owned())
}

#[on_both]
async fn a_check_refuses_what_it_is_there_for(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    rows::insert_everywhere(backend, &db).await;
    let violation = if backend == Backend::Postgres { "23514" } else { "275" };
    for (check, table, column, refused, accepted) in CASES {
        for value in refused.split(" | ") {
            let error = assign(&db, table, column, value).await.expect_err(value);
            let (code, text) = code(error);
            assert_eq!(code, violation, "{table}.{column} = {value}: {text}");
            assert!(text.contains(check), "{table}.{column} = {value}: {text}");
        }
        for value in accepted.split(" | ").filter(|value| !value.is_empty()) {
            let assigned = assign(&db, table, column, value).await;
            assigned.unwrap_or_else(|error| panic!("{table}.{column} = {value}: {error}"));
        }
    }
}

#[on_both]
async fn no_check_is_left_untried(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    let found = catalogue::schema(backend, &db).await;
    let mut tried: BTreeSet<String> = CASES.iter().map(|case| case.0.to_owned()).collect();
    if backend == Backend::Sqlite {
        // Tried by `a_native_vocabulary_has_its_labels_only`.
        let columns = enum_columns().into_iter();
        tried.extend(columns.map(|(table, column, _)| format!("ck_{table}_{column}")));
    }
    let checks = found.tables.into_values().flat_map(|table| table.checks.into_keys());
    assert_eq!(checks.collect::<BTreeSet<_>>(), tried);
}

#[on_both]
async fn a_native_vocabulary_has_its_labels_only(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    rows::insert_everywhere(backend, &db).await;
    let refusal = if backend == Backend::Postgres { "22P02" } else { "275" };
    for (table, column, labels) in enum_columns() {
        for bad in [labels[0].to_uppercase(), "bogus".to_owned()] {
            let value = format!("'{bad}'");
            let error = assign(&db, &table, &column, &value).await.expect_err(&value);
            assert_eq!(code(error).0, refusal, "{table}.{column} = {value}");
        }
        for label in labels {
            assign(&db, &table, &column, &format!("'{label}'")).await.unwrap();
        }
    }
}

#[on_both]
async fn every_value_of_an_entity_passes_its_check(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    rows::insert_everywhere(backend, &db).await;
    pass::<camera::CameraStatus>(&db, "cameras", "status").await;
    pass::<alert_suppression::SuppressionReason>(&db, "alert_suppressions", "reason").await;
    pass::<camera_zone::ZoneAnchor>(&db, "camera_zones", "anchor").await;
    pass::<notification_channel::ChannelKind>(&db, "notification_channels", "kind").await;
    pass::<Severity>(&db, "notification_channels", "quiet_except").await;
    pass::<delivery::DeliveryStatus>(&db, "deliveries", "status").await;
    pass::<Severity>(&db, "deliveries", "severity").await;
    pass::<event::RiskLevel>(&db, "events", "risk_level").await;
    pass::<detection::MediaType>(&db, "detections", "media_type").await;
    pass::<audit_log::AuditStatus>(&db, "audit_logs", "status").await;
    pass::<log::LogLevel>(&db, "logs", "level").await;
    pass::<log::LogSource>(&db, "logs", "source").await;
    pass::<job::JobStatus>(&db, "jobs", "status").await;
    pass::<job_attempt::JobAttemptStatus>(&db, "job_attempts", "status").await;
    pass::<job_log::JobLogLevel>(&db, "job_logs", "level").await;
    pass::<job_schedule::MissedPolicy>(&db, "job_schedules", "missed_policy").await;
    pass::<event_feedback::FeedbackType>(&db, "event_feedback", "feedback_type").await;
    pass::<Severity>(&db, "event_feedback", "expected_severity").await;
    pass::<Severity>(&db, "threat_detections", "severity").await;
    pass::<threat_detection::ThreatType>(&db, "threat_detections", "threat_type").await;
    pass::<pose_result::PoseClass>(&db, "pose_results", "pose_class").await;
    pass::<demographics_result::AgeRange>(&db, "demographics_results", "age_range").await;
    pass::<demographics_result::Gender>(&db, "demographics_results", "gender").await;
}

/// Writes every value, and holds the values against the labels that the document lists.
async fn pass<E: ActiveEnum<Value = String>>(db: &DatabaseConnection, table: &str, column: &str) {
    let document = expected::schema(Backend::Postgres);
    let list = format!("{column} IN (");
    let mut conditions = document.tables[table].checks.values();
    let labels = conditions.find_map(|condition| condition.split_once(&list)).unwrap().1;
    let labels: BTreeSet<&str> = labels.split('\'').skip(1).step_by(2).collect();
    let values: Vec<String> = E::iter().map(|value| value.to_value()).collect();
    let known: BTreeSet<&str> = values.iter().map(String::as_str).collect();
    assert_eq!(known, labels, "{table}.{column}");
    for value in &values {
        assign(db, table, column, &format!("'{value}'")).await.unwrap();
    }
}

/// The columns of native enum types, with their labels.
fn enum_columns() -> Vec<(String, String, Vec<String>)> {
    let schema = expected::schema(Backend::Postgres);
    let mut columns = Vec::new();
    for (name, table) in schema.tables {
        for column in table.columns {
            if let Some(vocabulary) = column.kind.strip_prefix("ENUM ") {
                let labels = schema.enums[vocabulary].clone();
                columns.push((name.clone(), column.name.clone(), labels));
            }
        }
    }
    columns
}
