//! `event_audits`: how well an event was judged.

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
    /// Characters.
    pub prompt_length: i32,
    pub prompt_token_estimate: i32,
    /// The part of the models that had a say, 0 to 1.
    pub enrichment_utilization: f64,
    /// 1 to 5, as are the other scores.
    pub context_usage_score: Option<f64>,
    pub reasoning_coherence_score: Option<f64>,
    pub risk_justification_score: Option<f64>,
    pub consistency_score: Option<f64>,
    pub overall_quality_score: Option<f64>,
    /// The risk score that a second run gave.
    pub consistency_risk_score: Option<i32>,
    /// By how much the second run differs.
    pub consistency_diff: Option<i32>,
    pub self_eval_critique: Option<String>,
    pub self_eval_prompt: Option<String>,
    pub self_eval_response: Option<String>,
    /// An array of strings, as text; so are the four that follow.
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
        Self {
            audited_at: Set(super::now()),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}
