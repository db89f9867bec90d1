//! Other valid values than those that are stored.

use crate::{schema::expected::Column, support::database::Backend};

/// A UUID that no row has.
const UUID: &str = "018f2f5e7a007000800000000000000b";

const SCHEDULE: &str = r#"{"days": ["friday"], "start_time": "01:00", "end_time": "02:00", "timezone": "UTC"}"#;

/// Columns whose values must be more than one of their kind, and an expression that gives another one. `$camera`,
/// `$event`, `$alert` and `$job` stand for another parent.
const SPECIFIC: &[(&str, &str, &str)] = &[
    ("cameras", "status", "'error'"),
    ("camera_zones", "camera_id", "$camera"),
    ("camera_zones", "zone_type", "'yard'"),
    ("camera_zones", "shape", "'rectangle'"),
    ("camera_zones", "color", "'#010203'"),
    ("camera_zones", "anchor", "'foot'"),
    ("camera_zones", "coordinates", "'[[0.5, 0.5], [0.6, 0.5], [0.6, 0.6], [0.5, 0.6]]'"),
    ("events", "camera_id", "$camera"),
    ("events", "started_at", "'2001-02-03T04:05:06+00:00'"),
    ("events", "risk_level", "'low'"),
    ("events", "deleted_at", "NULL"),
    ("detections", "camera_id", "$camera"),
    ("detections", "media_type", "'image'"),
    ("alert_rules", "severity", "'low'"),
    ("alert_rules", "schedule", "$schedule"),
    ("alert_rules", "escalation", r#"'[{"after_seconds": 77, "channels": ["later"]}]'"#),
    ("alerts", "event_id", "$event"),
    ("alerts", "rule_id", "NULL"),
    ("alerts", "camera_id", "NULL"),
    ("alerts", "severity", "'low'"),
    ("alerts", "status", "'pending'"),
    ("alert_suppressions", "event_id", "$event"),
    ("alert_suppressions", "rule_id", "NULL"),
    ("alert_suppressions", "camera_id", "$camera"),
    ("alert_suppressions", "reason", "'snoozed'"),
    ("alert_transitions", "alert_id", "$alert"),
    ("alert_transitions", "from_status", "'dismissed'"),
    ("alert_transitions", "to_status", "'dismissed'"),
    ("alert_transitions", "version_id", "version_id + 100"),
    ("silences", "severities", r#"'["low"]'"#),
    ("silences", "starts_at", "'2001-02-03T04:05:06+00:00'"),
    ("notification_channels", "config", r#"'{"stream": {}}'"#),
    ("notification_channels", "kind", "'stream'"),
    ("notification_channels", "quiet_times", "$schedules"),
    ("notification_channels", "quiet_except", "'low'"),
    ("deliveries", "alert_id", "$alert"),
    ("deliveries", "channel_id", "NULL"),
    ("deliveries", "escalation_step", "escalation_step + 100"),
    ("deliveries", "severity", "'low'"),
    ("deliveries", "status", "'cancelled'"),
    ("jobs", "status", "'failed'"),
    ("jobs", "progress_percent", "17"),
    ("jobs", "created_at", "'2001-02-03T04:05:06+00:00'"),
    ("jobs", "retry_policy", r#"'{"initial_ms": 11, "max_ms": 22, "multiplier": 3.5, "jitter": 0.5}'"#),
    ("job_attempts", "job_id", "$job"),
    ("job_attempts", "status", "'failed'"),
    ("job_attempts", "outcome", "'snoozed'"),
    ("job_attempts", "started_at", "'2001-02-03T04:05:06+00:00'"),
    ("job_logs", "job_id", "$job"),
    ("job_logs", "level", "'debug'"),
    ("job_transitions", "job_id", "$job"),
    ("job_transitions", "from_status", "'failed'"),
    ("job_transitions", "to_status", "'failed'"),
    ("job_transitions", "metadata_json", r#"'{"other": true}'"#),
    ("job_schedules", "cron", "'1 2 3 4 *'"),
    ("job_schedules", "time_zone", "'Europe/Paris'"),
    ("job_schedules", "missed_policy", "'run_all'"),
    ("gpus", "state", "'lost'"),
    ("gpus", "memory_pressure", "'critical'"),
    ("gpus", "reported_at", "'2001-02-03T04:05:06+00:00'"),
    ("gpu_stats", "absent_mask", "'MMMMMMMMMMMMMMMMMMMMMMMMMMMMM'"),
    ("gpu_events", "kind", "'lost'"),
    ("gpu_events", "source", "'watchdog'"),
];

/// An expression of SQL that gives another valid value of a column than `current`, which is a literal.
pub fn other(backend: Backend, table: &str, column: &Column, current: &str) -> String {
    let name = &column.name;
    let specific = SPECIFIC.iter().find(|(known, column, _)| (*known, *column) == (table, name));
    if let Some((.., expression)) = specific {
        let parent =
            |parent: &str, reference: &str| format!("(SELECT max(id) FROM {parent} WHERE id <> {table}.{reference})");
        // PostgreSQL has no maximum of UUIDs.
        let any = |parent: &str, reference: &str| {
            format!("(SELECT id FROM {parent} WHERE id <> {table}.{reference} ORDER BY id DESC LIMIT 1)")
        };
        return expression
            .replace("$schedules", &format!("'[{SCHEDULE}]'"))
            .replace("$schedule", &format!("'{SCHEDULE}'"))
            .replace("$camera", "CASE camera_id WHEN 'gate' THEN 'porch' ELSE 'gate' END")
            .replace("$event", &parent("events", "event_id"))
            .replace("$alert", &any("alerts", "alert_id"))
            .replace("$job", &any("jobs", "job_id"));
    }
    match column.kind.as_str() {
        "Integer" | "BigInteger" => format!("coalesce({name}, 0) + 1"),
        "Float" => format!("coalesce({name}, 0) / 2 + 0.125"),
        "Boolean" => format!("NOT {name}"),
        "DateTime(tz)" => "'2031-05-06T07:08:09+00:00'".into(),
        "JSON" | "JSONB" if current.contains('[') && !current.contains('{') => r#"'["other"]'"#.into(),
        "JSON" | "JSONB" => r#"'{"other": true}'"#.into(),
        "UUID" if backend == Backend::Sqlite => format!("x'{UUID}'"),
        "UUID" => format!("'{UUID}'"),
        "Bytes" if backend == Backend::Sqlite => "x'010203'".into(),
        "Bytes" => r"'\x010203'".into(),
        kind if kind == "Text" || kind.starts_with("String") => {
            format!("coalesce({name}, '') || 'x'")
        }
        kind => panic!("{table}.{name}: what other value has the kind {kind}? Say so in columns/values.rs"),
    }
}
