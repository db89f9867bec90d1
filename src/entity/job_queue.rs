//! Table `job_queues`: settings of queues. A queue without a row has default settings.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "job_queues")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    pub description: Option<String>,
    /// True if no job of the queue may be claimed.
    pub paused: bool,
    pub paused_at: Option<DateTimeUtc>,
    pub paused_by: Option<String>,
    pub pause_reason: Option<String>,
    /// Maximum number of running jobs in the queue.
    pub max_running: Option<i32>,
    /// Maximum number of running jobs per concurrency key in the queue.
    pub max_running_per_key: Option<i32>,
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
