//! `job_types`: what jobs of a type are given that do not say otherwise. NULL means the default.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "job_types")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    pub description: Option<String>,
    /// 0 to 4.
    pub priority: Option<i32>,
    pub max_attempts: Option<i32>,
    pub max_rescues: Option<i32>,
    /// How long an attempt may take.
    pub timeout_ms: Option<i64>,
    /// How long a job may take from its creation on.
    pub deadline_ms: Option<i64>,
    pub retry_initial_ms: Option<i64>,
    pub retry_max_ms: Option<i64>,
    pub retry_multiplier: Option<f64>,
    pub retry_jitter: Option<f64>,
    /// Whether a job that has failed for good becomes a dead letter.
    pub dead_letter: bool,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    /// Rises by 1 with each change.
    pub version_id: i32,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        let now = super::now();
        Self {
            created_at: Set(now),
            updated_at: Set(now),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}
