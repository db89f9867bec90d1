//! Table `events`: incidents at a camera, with their risk.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "events")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    /// Batch of detections analysed together. Not unique.
    pub batch_id: String,
    pub camera_id: String,
    pub started_at: DateTimeUtc,
    pub ended_at: Option<DateTimeUtc>,
    /// Risk score, 0 to 100.
    pub risk_score: Option<i32>,
    pub risk_level: Option<RiskLevel>,
    pub summary: Option<String>,
    pub reasoning: Option<String>,
    /// Complete prompt answered by `summary` and `reasoning`.
    pub llm_prompt: Option<String>,
    pub reviewed: bool,
    pub notes: Option<String>,
    /// True if the event was analysed at once, without waiting for a batch.
    pub is_fast_path: bool,
    /// Detected object types, separated by commas.
    pub object_types: Option<String>,
    pub clip_path: Option<String>,
    /// Time of the soft deletion; the event is hidden from lists, and its rows are kept.
    pub deleted_at: Option<DateTimeUtc>,
    /// Time before which the event raises no alerts.
    pub snooze_until: Option<DateTimeUtc>,
    #[sea_orm(belongs_to, from = "camera_id", to = "id", on_delete = "Cascade")]
    pub camera: BelongsTo<super::camera::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}

/// Band of a risk score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum RiskLevel {
    Low,
    Medium,
    High,
    Critical,
}
