//! Table `action_results`: recognized actions of a person in a detection.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "action_results")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub detection_id: i64,
    pub action: Option<String>,
    /// Confidence of the action, 0 to 1.
    pub confidence: Option<f64>,
    pub is_suspicious: bool,
    /// JSON object of scores by action.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub all_scores: Option<Json>,
    pub created_at: DateTimeUtc,
    #[sea_orm(belongs_to, from = "detection_id", to = "id", on_delete = "Cascade")]
    pub detection: BelongsTo<super::detection::Entity>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { created_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}
