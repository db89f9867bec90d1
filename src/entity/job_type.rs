//! Table `job_types`: defaults of job types, for jobs without own values. NULL means the default of
//! the server.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "job_types")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    pub description: Option<String>,
    /// Priority, 0 to 4.
    pub priority: Option<i32>,
    pub max_attempts: Option<i32>,
    pub max_rescues: Option<i32>,
    /// Maximum duration of an attempt, in milliseconds.
    pub timeout_ms: Option<i64>,
    /// Maximum duration of a job since its creation, in milliseconds.
    pub deadline_ms: Option<i64>,
    pub retry_initial_ms: Option<i64>,
    pub retry_max_ms: Option<i64>,
    pub retry_multiplier: Option<f64>,
    pub retry_jitter: Option<f64>,
    /// True if jobs become dead letters after their final failure.
    pub dead_letter: bool,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    /// Version, incremented by every change.
    pub version_id: i32,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        let now = super::now();
        Self { created_at: Set(now), updated_at: Set(now), ..<Self as ActiveModelTrait>::default() }
    }
}
