//! Table `job_attempts`: attempts to run a job.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "job_attempts")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub job_id: Uuid,
    /// Number of the attempt, from 1.
    pub attempt_number: i32,
    pub started_at: DateTimeUtc,
    pub ended_at: Option<DateTimeUtc>,
    pub status: JobAttemptStatus,
    pub worker_id: Option<String>,
    pub error_message: Option<String>,
    pub error_traceback: Option<String>,
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub result: Option<Json>,
    /// Lease of the attempt.
    pub lease_id: Option<Uuid>,
    /// Detailed reason for the end of the attempt.
    pub outcome: Option<AttemptOutcome>,
    pub error_code: Option<String>,
    #[sea_orm(belongs_to, from = "job_id", to = "id", on_delete = "Cascade")]
    pub job: BelongsTo<super::job::Entity>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { id: Set(Uuid::now_v7()), started_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

/// Status of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum JobAttemptStatus {
    Started,
    Succeeded,
    Failed,
    Cancelled,
}

/// Reason for the end of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::N(20))", rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// The worker completed the job.
    Succeeded,
    /// The worker reported a failure.
    Failed,
    /// The attempt exceeded its timeout.
    TimedOut,
    /// The lease expired: the worker is lost.
    Rescued,
    /// The worker returned the job.
    Released,
    /// The worker postponed the job.
    Snoozed,
    /// The job was cancelled.
    Cancelled,
}
