//! Table `class_baselines`: usual frequency of object classes per camera and hour.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "class_baselines")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub camera_id: String,
    pub detection_class: String,
    /// Hour of the day, 0 to 23.
    pub hour: i32,
    pub frequency: f64,
    pub sample_count: i32,
    pub last_updated: DateTimeUtc,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { last_updated: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}
