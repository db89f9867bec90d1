//! Table `backup_jobs`: backups of the whole system to a file.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "backup_jobs")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub status: BackupJobStatus,
    pub total_tables: i32,
    pub completed_tables: i32,
    /// Progress in percent, 0 to 100.
    pub progress_percent: i32,
    pub current_step: Option<String>,
    pub created_at: DateTimeUtc,
    pub started_at: Option<DateTimeUtc>,
    pub completed_at: Option<DateTimeUtc>,
    pub file_path: Option<String>,
    pub file_size_bytes: Option<i64>,
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub manifest_json: Option<Json>,
    pub error_message: Option<String>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { id: Set(Uuid::now_v7()), created_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

/// Status of a backup in its lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Enum", enum_name = "backup_job_status", rename_all = "snake_case")]
pub enum BackupJobStatus {
    Pending,
    Running,
    Completed,
    Failed,
}
