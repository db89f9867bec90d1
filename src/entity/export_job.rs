//! Table `export_jobs`: exports of data to files.

use chrono::TimeDelta;
use sea_orm::{Set, entity::prelude::*};

/// Default retention of a file, for `expires_at`.
const EXPIRY: TimeDelta = TimeDelta::days(7);

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "export_jobs")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub status: ExportJobStatus,
    /// Exported data: `events`, `alerts` or `full_backup`; extensible.
    pub export_type: String,
    /// File format: `csv`, `json`, `zip` or `excel`; extensible.
    pub export_format: String,
    pub total_items: Option<i32>,
    pub processed_items: i32,
    /// Progress in percent, 0 to 100.
    pub progress_percent: i32,
    pub current_step: Option<String>,
    pub created_at: DateTimeUtc,
    pub started_at: Option<DateTimeUtc>,
    pub completed_at: Option<DateTimeUtc>,
    pub estimated_completion: Option<DateTimeUtc>,
    pub output_path: Option<String>,
    pub output_size_bytes: Option<i64>,
    pub error_message: Option<String>,
    /// JSON object of the filter, stored as text.
    pub filter_params: Option<String>,
    /// Time from which the file may be deleted, unless `legal_hold` is set.
    pub expires_at: Option<DateTimeUtc>,
    pub download_count: i32,
    pub last_downloaded_at: Option<DateTimeUtc>,
    pub sensitivity_acknowledged: bool,
    pub acknowledged_at: Option<DateTimeUtc>,
    /// Retention of the file in days, instead of the default.
    pub retention_days: Option<i32>,
    /// Prevents deletion of the file, regardless of `expires_at`.
    pub legal_hold: bool,
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub compliance_metadata: Option<Json>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        let now = super::now();
        Self {
            id: Set(Uuid::now_v7()),
            created_at: Set(now),
            expires_at: Set(Some(now + EXPIRY)),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}

/// Status of an export in its lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Enum", enum_name = "export_job_status", rename_all = "snake_case")]
pub enum ExportJobStatus {
    Pending,
    Running,
    Completed,
    Failed,
}
