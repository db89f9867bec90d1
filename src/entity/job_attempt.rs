//! `job_attempts`: each run of a job.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "job_attempts")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub job_id: Uuid,
    /// Counts from 1.
    pub attempt_number: i32,
    pub started_at: DateTimeUtc,
    pub ended_at: Option<DateTimeUtc>,
    pub status: JobAttemptStatus,
    pub worker_id: Option<String>,
    pub error_message: Option<String>,
    pub error_traceback: Option<String>,
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub result: Option<Json>,
    /// The lease under which it ran.
    pub lease_id: Option<Uuid>,
    /// Why it ended, more exactly than `status` says.
    pub outcome: Option<AttemptOutcome>,
    pub error_code: Option<String>,
    #[sea_orm(belongs_to, from = "job_id", to = "id", on_delete = "Cascade")]
    pub job: BelongsTo<super::job::Entity>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self {
            id: Set(Uuid::now_v7()),
            started_at: Set(super::now()),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}

/// How a run of a job is going, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "String(StringLen::None)",
    rename_all = "snake_case"
)]
pub enum JobAttemptStatus {
    Started,
    Succeeded,
    Failed,
    Cancelled,
}

/// Why a run of a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "String(StringLen::N(20))",
    rename_all = "snake_case"
)]
pub enum AttemptOutcome {
    /// The worker completed the job.
    Succeeded,
    /// The worker said that it failed.
    Failed,
    /// It took longer than it may.
    TimedOut,
    /// Its lease expired: the worker is gone.
    Rescued,
    /// The worker gave it back.
    Released,
    /// The worker gave it back for later.
    Snoozed,
    /// It was cancelled.
    Cancelled,
}
