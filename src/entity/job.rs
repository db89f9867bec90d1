//! Table `jobs`: background jobs.

use sea_orm::{FromJsonQueryResult, Set, entity::prelude::*};
use serde::{Deserialize, Serialize};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "jobs")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub job_type: String,
    pub status: JobStatus,
    pub queue_name: Option<String>,
    /// Priority, 0 (highest) to 4 (lowest).
    pub priority: i32,
    pub created_at: DateTimeUtc,
    pub started_at: Option<DateTimeUtc>,
    pub completed_at: Option<DateTimeUtc>,
    /// Progress in percent, 0 to 100.
    pub progress_percent: i32,
    pub current_step: Option<String>,
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub result: Option<Json>,
    pub error_message: Option<String>,
    pub error_traceback: Option<String>,
    /// Number of the attempt, from 1.
    pub attempt_number: i32,
    pub max_attempts: i32,
    pub next_retry_at: Option<DateTimeUtc>,
    /// JSON object passed to the worker.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub payload: Option<Json>,
    /// Time from which the job may be claimed.
    pub scheduled_at: Option<DateTimeUtc>,
    /// Concurrency key; empty for none.
    pub concurrency_key: String,
    /// Number of failed attempts that count towards `max_attempts`.
    pub failures: i32,
    /// Number of attempts that ended with an expired lease.
    pub rescues: i32,
    pub max_rescues: i32,
    /// Maximum duration of an attempt, in milliseconds.
    pub timeout_ms: Option<i64>,
    /// Deadline of the running attempt.
    pub attempt_deadline_at: Option<DateTimeUtc>,
    /// Deadline of the whole job.
    pub deadline_at: Option<DateTimeUtc>,
    /// [`RetryPolicy`]; NULL for the policy of the job type.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub retry_policy: Option<RetryPolicy>,
    /// True if the job becomes a dead letter after its final failure.
    pub dead_letter: bool,
    pub dead_at: Option<DateTimeUtc>,
    /// Lease of the running attempt, required in every report of the worker. Set only while
    /// running.
    pub lease_id: Option<Uuid>,
    /// Worker of the running or last attempt.
    pub worker_id: Option<String>,
    /// Duration in milliseconds by which a heartbeat extends the lease.
    pub lease_ms: Option<i64>,
    pub lease_expires_at: Option<DateTimeUtc>,
    pub heartbeat_at: Option<DateTimeUtc>,
    pub cancel_requested_at: Option<DateTimeUtc>,
    pub cancel_requested_by: Option<String>,
    pub cancel_reason: Option<String>,
    pub unique_key: Option<String>,
    /// Start of the period of the unique key, in milliseconds since 1970; 0 without a period.
    pub unique_period: i64,
    /// Statuses in which the unique key applies, as bits; see [`JobStatus::bit`].
    pub unique_states: i32,
    pub request_id: Option<String>,
    /// SHA-256 of the request with `request_id`.
    pub request_hash: Option<Vec<u8>>,
    /// Schedule that created the job; `tick_at` is the scheduled time.
    pub schedule_id: Option<Uuid>,
    pub tick_at: Option<DateTimeUtc>,
    pub error_code: Option<String>,
    pub items_processed: Option<i64>,
    pub items_total: Option<i64>,
    /// Time of the last progress report.
    pub progress_at: Option<DateTimeUtc>,
    /// Number of log lines of the job.
    pub log_lines: i64,
    /// Version, incremented by every transition.
    pub version_id: i32,
    /// Time of the last status change.
    pub transitioned_at: Option<DateTimeUtc>,
}

/// Exponential backoff between attempts: `initial_ms`, multiplied by `multiplier` each time, at
/// most `max_ms`, plus a random share of up to `jitter`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, FromJsonQueryResult)]
pub struct RetryPolicy {
    pub initial_ms: i64,
    pub max_ms: i64,
    pub multiplier: f64,
    pub jitter: f64,
}

impl Model {
    /// Creates a job queued for immediate start, with default values.
    pub fn queued(job_type: String, now: DateTimeUtc) -> Self {
        Self {
            id: Uuid::now_v7(),
            job_type,
            status: JobStatus::Queued,
            queue_name: Some("default".into()),
            priority: 2,
            created_at: now,
            started_at: None,
            completed_at: None,
            progress_percent: 0,
            current_step: None,
            result: None,
            error_message: None,
            error_traceback: None,
            attempt_number: 1,
            max_attempts: 3,
            next_retry_at: None,
            payload: None,
            scheduled_at: Some(now),
            concurrency_key: String::new(),
            failures: 0,
            rescues: 0,
            max_rescues: 3,
            timeout_ms: None,
            attempt_deadline_at: None,
            deadline_at: None,
            retry_policy: None,
            dead_letter: true,
            dead_at: None,
            lease_id: None,
            worker_id: None,
            lease_ms: None,
            lease_expires_at: None,
            heartbeat_at: None,
            cancel_requested_at: None,
            cancel_requested_by: None,
            cancel_reason: None,
            unique_key: None,
            unique_period: 0,
            unique_states: 0,
            request_id: None,
            request_hash: None,
            schedule_id: None,
            tick_at: None,
            error_code: None,
            items_processed: None,
            items_total: None,
            progress_at: None,
            log_lines: 0,
            version_id: 1,
            transitioned_at: None,
        }
    }
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { id: Set(Uuid::now_v7()), created_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

/// Status of a job in its lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum JobStatus {
    Queued,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl JobStatus {
    /// Returns the bit of the status in `unique_states` and its index.
    pub fn bit(self) -> i32 {
        match self {
            Self::Queued => 1,
            Self::Running => 2,
            Self::Completed => 4,
            Self::Failed => 8,
            Self::Cancelled => 16,
        }
    }

    /// Name of the status in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns true if the job is finished, unless retried manually.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}
