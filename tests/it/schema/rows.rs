//! One row in every table, with no more than it needs.

use sea_orm::{ConnectionTrait, DatabaseConnection};

use crate::support::database::Backend;

/// A job, a schedule, a rule, an alert.
const UUID: &str = "018f2f5e7a007000800000000000000a";

/// In an order in which parents come first. `$uuid` and `$bytes` are spelt differently.
const ROWS: &[(&str, &str)] = &[
    ("cameras", "(id, name, folder_path) VALUES ('porch', 'Front Porch', '/porch')"),
    ("events", "(batch_id, camera_id, started_at) VALUES ('b', 'porch', '2026-03-01T12:00:00+00:00')"),
    ("detections", "(camera_id, file_path) VALUES ('porch', '/porch/1.jpg')"),
    ("event_detections", "(event_id, detection_id) VALUES (1, 1)"),
    ("event_ingests", "(event_id, camera_id, fingerprint) VALUES (1, 'porch', $bytes)"),
    ("gpu_stats", "(gpu_name) VALUES ('RTX A5500')"),
    ("gpus", "(uuid, host) VALUES ('GPU-1', 'edge')"),
    ("gpu_stats_minutes", "(gpu_uuid, minute, summary, distribution) VALUES ('GPU-1', 1, $bytes, $bytes)"),
    ("gpu_stats_pending", "(gpu_uuid, minute) VALUES ('GPU-1', 1)"),
    (
        "gpu_events",
        "(occurred_at, host, kind, source)
        VALUES ('2026-03-01T12:00:00+00:00', 'edge', 'xid', 'kernel_log')",
    ),
    ("gpu_reporters", "(reporter_id, host, last_sequence) VALUES ('edge-1', 'edge', 1)"),
    (
        "gpu_claims",
        "(gpu_uuid, host, claimant, is_agent, claimant_since)
        VALUES ('GPU-1', 'edge', 'edge-1', true, '2026-03-01T12:00:00+00:00')",
    ),
    ("audit_logs", "(action, resource_type, actor) VALUES ('create', 'alert_rule', 'ann')"),
    (
        "logs",
        "(level, component, message, camera_id, event_id, detection_id)
        VALUES ('INFO', 'detector', 'ready', 'porch', 1, 1)",
    ),
    ("alert_rules", "(id, name) VALUES ($uuid, 'Anyone')"),
    (
        "alerts",
        "(id, event_id, rule_id, camera_id, dedup_key)
        VALUES ($uuid, 1, $uuid, 'porch', 'porch:anyone')",
    ),
    (
        "alert_cooldowns",
        "(rule_id, dedup_key, alert_id, raised_at_us, cooldown_us)
        VALUES ($uuid, 'porch:anyone', $uuid, 1, 1)",
    ),
    ("alert_flaps", "(rule_id) VALUES ($uuid)"),
    (
        "alert_suppressions",
        "(event_id, rule_id, camera_id, dedup_key, reason)
        VALUES (1, $uuid, 'porch', 'porch:anyone', 'silenced')",
    ),
    (
        "silences",
        "(id, ends_at, created_by, reason, starts_at)
        VALUES ($uuid, '2026-03-01T13:00:00+00:00', 'ann', 'work', '2026-03-01T12:00:00+00:00')",
    ),
    (
        "manual_alert_cooldowns",
        "(dedup_key, alert_id, raised_at_us, cooldown_us)
        VALUES ('porch:anyone', $uuid, 1, 1)",
    ),
    ("alert_transitions", "(alert_id, to_status, version_id, actor) VALUES ($uuid, 'pending', 1, 'ann')"),
    ("alert_requests", "(request_id, fingerprint, alert_id, created) VALUES ('r', $bytes, $uuid, TRUE)"),
    ("notification_channels", "(id, name, kind, config) VALUES ($uuid, 'ops', 'stream', '{\"stream\": {}}')"),
    (
        "deliveries",
        "(id, alert_id, channel_id, channel_name, severity, next_attempt_at)
        VALUES ($uuid, $uuid, $uuid, 'ops', 'high', '2026-03-01T12:00:00+00:00')",
    ),
    ("activity_baselines", "(camera_id, hour, day_of_week) VALUES ('porch', 1, 1)"),
    ("class_baselines", "(camera_id, detection_class, hour) VALUES ('porch', 'person', 1)"),
    ("camera_zones", "(id, camera_id, name, coordinates) VALUES ('z', 'porch', 'Steps', '[]')"),
    ("jobs", "(id, job_type) VALUES ($uuid, 'export')"),
    ("job_attempts", "(job_id) VALUES ($uuid)"),
    ("job_logs", "(job_id, message) VALUES ($uuid, 'started')"),
    ("job_transitions", "(job_id, from_status, to_status) VALUES ($uuid, 'queued', 'running')"),
    ("job_queues", "(name) VALUES ('default')"),
    ("job_types", "(name) VALUES ('export')"),
    (
        "job_schedules",
        "(id, name, cron, job_type, next_tick_at)
        VALUES ($uuid, 'nightly', '0 3 * * *', 'export', '2026-03-02T03:00:00+00:00')",
    ),
    ("export_jobs", "(export_type) VALUES ('events')"),
    ("backup_jobs", "DEFAULT VALUES"),
    ("restore_jobs", "DEFAULT VALUES"),
    ("event_feedback", "(event_id, feedback_type) VALUES (1, 'accurate')"),
    ("event_audits", "(event_id) VALUES (1)"),
    ("pose_results", "(detection_id) VALUES (1)"),
    (
        "threat_detections",
        "(detection_id, threat_type, confidence, severity)
        VALUES (1, 'knife', 0.5, 'high')",
    ),
    ("demographics_results", "(detection_id) VALUES (1)"),
    ("reid_embeddings", "(detection_id) VALUES (1)"),
    ("action_results", "(detection_id) VALUES (1)"),
    ("changes", "(topic, key, message) VALUES ('alert', '1', $bytes)"),
];

pub async fn insert_everywhere(backend: Backend, db: &DatabaseConnection) {
    let (uuid, bytes) = match backend {
        Backend::Sqlite => (format!("x'{UUID}'"), "x'00'"),
        Backend::Postgres => (format!("'{UUID}'"), "'\\x00'"),
    };
    for (table, values) in ROWS {
        let values = values.replace("$uuid", &uuid).replace("$bytes", bytes);
        let inserted = db.execute_unprepared(&format!("INSERT INTO {table} {values}")).await;
        inserted.unwrap_or_else(|error| panic!("{table}: {error}"));
    }
}
