//! Table `job_logs`: log lines of jobs.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "job_logs")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub job_id: Uuid,
    /// Number of the attempt, from 1.
    pub attempt_number: i32,
    pub timestamp: DateTimeUtc,
    pub level: JobLogLevel,
    pub message: String,
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub context: Option<Json>,
    /// Number of the line within the job, from 1.
    pub line: Option<i64>,
    #[sea_orm(belongs_to, from = "job_id", to = "id", on_delete = "Cascade")]
    pub job: BelongsTo<super::job::Entity>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { id: Set(Uuid::now_v7()), timestamp: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

/// Level of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum JobLogLevel {
    Debug,
    Info,
    Warning,
    Error,
}
