//! Table `activity_baselines`: usual number of detections per camera, hour and weekday.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "activity_baselines")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub camera_id: String,
    /// Hour of the day, 0 to 23.
    pub hour: i32,
    /// Day of the week, 0 (Monday) to 6 (Sunday).
    pub day_of_week: i32,
    pub avg_count: f64,
    pub sample_count: i32,
    pub last_updated: DateTimeUtc,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { last_updated: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}
