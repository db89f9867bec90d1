//! `job_schedules`: jobs that are created at set times.

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
    /// A cron expression of five fields, or six with seconds first.
    pub cron: String,
    /// The IANA name of the zone that it is read in.
    pub time_zone: String,
    pub missed_policy: MissedPolicy,
    pub job_type: String,
    pub queue_name: String,
    /// 0 to 4; NULL means that of the type.
    pub priority: Option<i32>,
    pub max_attempts: Option<i32>,
    /// An object.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub payload: Option<Json>,
    /// Whether a tick is left out while a job of an earlier one is queued or runs.
    pub skip_if_active: bool,
    /// The first tick for which no job was created yet.
    pub next_tick_at: DateTimeUtc,
    /// The last tick for which one was.
    pub last_tick_at: Option<DateTimeUtc>,
    pub last_job_id: Option<Uuid>,
    /// How many ticks were left out.
    pub missed_ticks: i64,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    /// Rises by 1 with each change.
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

/// What becomes of ticks that passed while no server ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "String(StringLen::N(16))",
    rename_all = "snake_case"
)]
pub enum MissedPolicy {
    /// Nothing.
    Skip,
    /// The last one is made up for.
    RunOnce,
    /// All are made up for, oldest first.
    RunAll,
}
