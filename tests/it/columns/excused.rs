//! What the tests of columns leave out, and why.

/// Tables that no service writes or reads yet.
pub const WITHOUT_SERVICE: &[&str] = &[
    "action_results",
    "activity_baselines",
    "audit_logs",
    "backup_jobs",
    "class_baselines",
    "demographics_results",
    "event_audits",
    "event_feedback",
    "export_jobs",
    "logs",
    "pose_results",
    "reid_embeddings",
    "restore_jobs",
    "threat_detections",
];

/// Tables that no resource of the API stands for, and what reads them.
pub const INTERNAL: &[(&str, &str)] = &[
    ("alert_cooldowns", "the ingest of events, to hold back repeats of alerts"),
    ("alert_flaps", "the ingest of events, to find flapping rules"),
    ("alert_requests", "CreateAlert, to answer a repeated request"),
    ("changes", "the feed; tests/it/watch compares what it tells"),
    ("event_ingests", "IngestEvent, to answer a repeated request"),
    ("feed_incarnations", "the feed, to judge cursors"),
    ("feed_state", "the feed, to judge cursors"),
    ("gpu_claims", "RecordGpuStats, so that one host reports a GPU"),
    ("gpu_history_state", "the roll-up of GPU samples"),
    ("gpu_reporters", "RecordGpuStats, to recognise a repeated batch"),
    ("gpu_stats_minutes", "AggregateGpuStats; tests/it/gpu/history compares its sums"),
    ("gpu_stats_pending", "the roll-up of GPU samples"),
    ("manual_alert_cooldowns", "CreateAlert, to hold back repeats"),
];

/// Columns that no call of the API writes.
pub const NOT_WRITTEN: &[(&str, &str, &str)] = &[
    (
        "alert_rules",
        "conditions",
        "what clients send of the old form becomes the other conditions; rules from before keep it",
    ),
    ("events", "search_vector", "the database fills it for searches"),
    ("detections", "search_vector", "the database fills it for searches"),
    ("job_transitions", "metadata_json", "other programs write it"),
    ("gpu_stats", "absent_reasons", "rows from before absent_mask have it"),
    (
        "deliveries",
        "lease_id",
        "is set only while an attempt is under way; the test of preserved columns sees it cleared",
    ),
];

/// Columns that no answer shows.
pub const NOT_READ: &[(&str, &str, &str)] = &[
    ("events", "search_vector", "only searches read it"),
    ("detections", "search_vector", "only searches read it"),
    ("event_detections", "created_at", "a relation has no message"),
    ("gpu_stats", "absent_reasons", "is read only of rows without absent_mask"),
    ("deliveries", "failures", "only the deliverer reads it, to space attempts"),
    ("deliveries", "lease_id", "only the deliverer reads it, to fence attempts"),
    ("jobs", "lease_id", "only the worker that claims the job is told it"),
    ("jobs", "lease_ms", "only heartbeats read it, to extend the lease"),
    ("jobs", "attempt_deadline_at", "only the worker that claims the job is told it"),
    ("jobs", "request_hash", "only CreateJob reads it, to recognise a repeated request"),
    ("jobs", "unique_period", "only CreateJob reads it, to find holders of the unique key"),
    ("job_attempts", "lease_id", "fences the reports of the attempt"),
];

/// Columns that some calls leave out: the calls that do, and why.
pub const READ_BY_SOME: &[(&str, &str, &[&str], &str)] = &[
    (
        "notification_channels",
        "kind",
        &["get_notification_channel", "list_notification_channels"],
        "only filters read it: the configuration says it too",
    ),
    ("events", "llm_prompt", &["list_events"], "lists leave out what is large"),
    ("jobs", "payload", &["list_jobs"], "lists leave out what is large"),
    ("jobs", "result", &["list_jobs"], "lists leave out what is large"),
    ("jobs", "error_traceback", &["list_jobs"], "lists leave out what is large"),
];
