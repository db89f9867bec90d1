//! Table `event_audits`: quality of the analysis of an event.

#![expect(clippy::struct_excessive_bools, reason = "one flag for each model")]

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "event_audits")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub event_id: i64,
    pub audited_at: DateTimeUtc,
    pub has_yolo26: bool,
    pub has_florence: bool,
    pub has_clip: bool,
    pub has_violence: bool,
    pub has_clothing: bool,
    pub has_vehicle: bool,
    pub has_pet: bool,
    pub has_weather: bool,
    pub has_image_quality: bool,
    pub has_zones: bool,
    pub has_baseline: bool,
    pub has_cross_camera: bool,
    /// Length of the prompt in characters.
    pub prompt_length: i32,
    pub prompt_token_estimate: i32,
    /// Share of models that contributed, 0 to 1.
    pub enrichment_utilization: f64,
    /// Score of the context usage, 1 to 5. The other scores have the same range.
    pub context_usage_score: Option<f64>,
    pub reasoning_coherence_score: Option<f64>,
    pub risk_justification_score: Option<f64>,
    pub consistency_score: Option<f64>,
    pub overall_quality_score: Option<f64>,
    /// Risk score of a second run.
    pub consistency_risk_score: Option<i32>,
    /// Difference between the risk scores of both runs.
    pub consistency_diff: Option<i32>,
    pub self_eval_critique: Option<String>,
    pub self_eval_prompt: Option<String>,
    pub self_eval_response: Option<String>,
    /// JSON array of strings, stored as text, like the four following columns.
    pub missing_context: Option<String>,
    pub confusing_sections: Option<String>,
    pub unused_data: Option<String>,
    pub format_suggestions: Option<String>,
    pub model_gaps: Option<String>,
    #[sea_orm(belongs_to, from = "event_id", to = "id", on_delete = "Cascade")]
    pub event: BelongsTo<super::event::Entity>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { audited_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}
