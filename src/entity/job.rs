//! `jobs`: work that is done in the background.

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
    /// 0 to 4.
    pub priority: i32,
    pub created_at: DateTimeUtc,
    pub started_at: Option<DateTimeUtc>,
    pub completed_at: Option<DateTimeUtc>,
    /// 0 to 100.
    pub progress_percent: i32,
    pub current_step: Option<String>,
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub result: Option<Json>,
    pub error_message: Option<String>,
    pub error_traceback: Option<String>,
    /// Counts from 1.
    pub attempt_number: i32,
    pub max_attempts: i32,
    pub next_retry_at: Option<DateTimeUtc>,
    /// An object.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub payload: Option<Json>,
    /// From when on it may be claimed.
    pub scheduled_at: Option<DateTimeUtc>,
    /// Empty for none.
    pub concurrency_key: String,
    /// How many attempts have failed: those that count towards `max_attempts`.
    pub failures: i32,
    /// How many attempts ended with their lease.
    pub rescues: i32,
    pub max_rescues: i32,
    /// How long an attempt may take.
    pub timeout_ms: Option<i64>,
    /// When the attempt that runs has taken too long.
    pub attempt_deadline_at: Option<DateTimeUtc>,
    /// When the whole job has taken too long.
    pub deadline_at: Option<DateTimeUtc>,
    /// [`RetryPolicy`]; NULL means that of its type.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub retry_policy: Option<RetryPolicy>,
    /// Whether it becomes a dead letter when it has failed for good.
    pub dead_letter: bool,
    pub dead_at: Option<DateTimeUtc>,
    /// The fence: whoever reports on the job must know it. Set while it runs.
    pub lease_id: Option<Uuid>,
    /// Who runs it, or ran it last.
    pub worker_id: Option<String>,
    /// How far a heartbeat extends the lease.
    pub lease_ms: Option<i64>,
    pub lease_expires_at: Option<DateTimeUtc>,
    pub heartbeat_at: Option<DateTimeUtc>,
    pub cancel_requested_at: Option<DateTimeUtc>,
    pub cancel_requested_by: Option<String>,
    pub cancel_reason: Option<String>,
    pub unique_key: Option<String>,
    /// When the period began that the unique key holds for, in milliseconds since 1970. 0 without one.
    pub unique_period: i64,
    /// In which statuses the unique key holds; see [`JobStatus::bit`].
    pub unique_states: i32,
    pub request_id: Option<String>,
    /// SHA-256 of the request with that id.
    pub request_hash: Option<Vec<u8>>,
    /// The schedule that made it, and for when.
    pub schedule_id: Option<Uuid>,
    pub tick_at: Option<DateTimeUtc>,
    pub error_code: Option<String>,
    pub items_processed: Option<i64>,
    pub items_total: Option<i64>,
    /// When its progress was last told.
    pub progress_at: Option<DateTimeUtc>,
    /// How many lines its log has.
    pub log_lines: i64,
    /// Rises by 1 with each transition.
    pub version_id: i32,
    /// When it last changed its status.
    pub transitioned_at: Option<DateTimeUtc>,
}

/// After how long a job is tried again: `initial_ms`, then `multiplier` times as long each time, at most
/// `max_ms`; and up to `jitter` times as long again at random.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, FromJsonQueryResult)]
pub struct RetryPolicy {
    pub initial_ms: i64,
    pub max_ms: i64,
    pub multiplier: f64,
    pub jitter: f64,
}

impl Model {
    /// A job that is queued at this time, to run at once, with nothing said of it.
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
        Self {
            id: Set(Uuid::now_v7()),
            created_at: Set(super::now()),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "String(StringLen::None)",
    rename_all = "snake_case"
)]
pub enum JobStatus {
    Queued,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl JobStatus {
    /// The bit that stands for it in `unique_states`, and in the index over them.
    pub fn bit(self) -> i32 {
        match self {
            Self::Queued => 1,
            Self::Running => 2,
            Self::Completed => 4,
            Self::Failed => 8,
            Self::Cancelled => 16,
        }
    }

    /// How the database has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the job is at its end, unless somebody has it tried again.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}
