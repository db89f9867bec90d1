//! Database tables: one entity per table, with fields in the order of the columns.

use sea_orm::{FromJsonQueryResult, entity::prelude::*};
use serde::{Deserialize, Serialize};

pub mod action_result;
pub mod activity_baseline;
pub mod alert;
pub mod alert_cooldown;
pub mod alert_flap;
pub mod alert_request;
pub mod alert_rule;
pub mod alert_suppression;
pub mod alert_transition;
pub mod audit_log;
pub mod backup_job;
pub mod camera;
pub mod camera_zone;
pub mod change;
pub mod class_baseline;
pub mod delivery;
pub mod demographics_result;
pub mod detection;
pub mod event;
pub mod event_audit;
pub mod event_detection;
pub mod event_feedback;
pub mod event_ingest;
pub mod export_job;
pub mod feed_incarnation;
pub mod feed_state;
pub mod gpu;
pub mod gpu_claim;
pub mod gpu_event;
pub mod gpu_history_state;
pub mod gpu_reporter;
pub mod gpu_stats;
pub mod gpu_stats_minute;
pub mod gpu_stats_pending;
pub mod job;
pub mod job_attempt;
pub mod job_log;
pub mod job_queue;
pub mod job_schedule;
pub mod job_transition;
pub mod job_type;
pub mod log;
pub mod manual_alert_cooldown;
pub mod notification_channel;
pub mod pose_result;
pub mod reid_embedding;
pub mod restore_job;
pub mod silence;
pub mod threat_detection;

/// Returns the current time with the precision of the databases: PostgreSQL has no nanoseconds, and
/// a row must be equal after a read.
pub fn now() -> DateTimeUtc {
    crate::clock::now()
}

/// JSON array of strings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, FromJsonQueryResult)]
pub struct Strings(pub Vec<String>);

/// Severity in columns that are plain text in both databases. Columns of the native type use
/// [`alert::AlertSeverity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum Severity {
    Low,
    Medium,
    High,
    Critical,
}

impl From<alert::AlertSeverity> for Severity {
    fn from(severity: alert::AlertSeverity) -> Self {
        use alert::AlertSeverity as Native;
        match severity {
            Native::Low => Self::Low,
            Native::Medium => Self::Medium,
            Native::High => Self::High,
            Native::Critical => Self::Critical,
        }
    }
}
