//! Table `event_feedback`: feedback of users on an event.

use sea_orm::{Set, entity::prelude::*};

use super::Severity;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "event_feedback")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub event_id: i64,
    pub feedback_type: FeedbackType,
    pub notes: Option<String>,
    pub expected_severity: Option<Severity>,
    pub created_at: DateTimeUtc,
    #[sea_orm(belongs_to, from = "event_id", to = "id", on_delete = "Cascade")]
    pub event: BelongsTo<super::event::Entity>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { created_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

/// Opinion of a user on the analysis of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum FeedbackType {
    Accurate,
    Correct,
    FalsePositive,
    MissedThreat,
    SeverityWrong,
}
