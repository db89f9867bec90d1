//! Table `job_schedules`: schedules that create jobs periodically.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "job_schedules")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    #[sea_orm(unique)]
    pub name: String,
    pub description: Option<String>,
    pub enabled: bool,
    /// Cron expression of five fields, or of six with seconds first.
    pub cron: String,
    /// IANA name of the time zone of the cron expression.
    pub time_zone: String,
    pub missed_policy: MissedPolicy,
    pub job_type: String,
    pub queue_name: String,
    /// Priority of the jobs, 0 to 4; NULL for the priority of the job type.
    pub priority: Option<i32>,
    pub max_attempts: Option<i32>,
    /// JSON object passed to the jobs.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub payload: Option<Json>,
    /// True if a tick is skipped while a job of an earlier tick is queued or running.
    pub skip_if_active: bool,
    /// Next tick without a job.
    pub next_tick_at: DateTimeUtc,
    /// Last tick with a job.
    pub last_tick_at: Option<DateTimeUtc>,
    pub last_job_id: Option<Uuid>,
    /// Number of skipped ticks.
    pub missed_ticks: i64,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    /// Version, incremented by every change.
    pub version_id: i32,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        let now = super::now();
        Self {
            id: Set(Uuid::now_v7()),
            created_at: Set(now),
            updated_at: Set(now),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}

/// Handling of ticks that passed while no server was running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::N(16))", rename_all = "snake_case")]
pub enum MissedPolicy {
    /// Missed ticks are skipped.
    Skip,
    /// The last missed tick creates a job.
    RunOnce,
    /// All missed ticks create jobs, oldest first.
    RunAll,
}
