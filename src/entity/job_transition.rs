//! Table `job_transitions`: status changes of jobs.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "job_transitions")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub job_id: Uuid,
    pub from_status: String,
    pub to_status: String,
    pub transitioned_at: DateTimeUtc,
    /// Trigger: `worker`, `user`, `timeout`, `retry` or `system`; extensible.
    pub triggered_by: String,
    /// JSON object, stored as text.
    pub metadata_json: Option<String>,
    /// Version of the job after the transition.
    pub version_id: Option<i32>,
    /// Attempt that was started or ended by the transition, or the last attempt before.
    pub attempt_number: Option<i32>,
    pub actor: Option<String>,
    pub reason: Option<String>,
    #[sea_orm(belongs_to, from = "job_id", to = "id", on_delete = "Cascade")]
    pub job: BelongsTo<super::job::Entity>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { id: Set(Uuid::now_v7()), transitioned_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}
