//! `events`: what happened at a camera, and how risky it is.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "events")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    /// Groups what was analysed together. Not unique.
    pub batch_id: String,
    pub camera_id: String,
    pub started_at: DateTimeUtc,
    pub ended_at: Option<DateTimeUtc>,
    /// 0 to 100.
    pub risk_score: Option<i32>,
    pub risk_level: Option<RiskLevel>,
    pub summary: Option<String>,
    pub reasoning: Option<String>,
    /// The whole prompt that `summary` and `reasoning` answer.
    pub llm_prompt: Option<String>,
    pub reviewed: bool,
    pub notes: Option<String>,
    /// Whether it was analysed at once, without waiting for a batch.
    pub is_fast_path: bool,
    /// What was seen, separated by commas.
    pub object_types: Option<String>,
    pub clip_path: Option<String>,
    /// Set while it is hidden from lists; its rows stay.
    pub deleted_at: Option<DateTimeUtc>,
    /// No alerts are raised before this time.
    pub snooze_until: Option<DateTimeUtc>,
    #[sea_orm(belongs_to, from = "camera_id", to = "id", on_delete = "Cascade")]
    pub camera: BelongsTo<super::camera::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}

/// The band that a risk score is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "String(StringLen::None)",
    rename_all = "snake_case"
)]
pub enum RiskLevel {
    Low,
    Medium,
    High,
    Critical,
}
