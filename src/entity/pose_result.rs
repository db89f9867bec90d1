//! Table `pose_results`: estimated poses of detected persons.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "pose_results")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub detection_id: i64,
    /// 17 keypoints of COCO, `[[x, y, confidence], …]`.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub keypoints: Option<Json>,
    pub pose_class: Option<PoseClass>,
    /// Confidence of the pose, 0 to 1.
    pub confidence: Option<f64>,
    pub is_suspicious: bool,
    pub created_at: DateTimeUtc,
    #[sea_orm(belongs_to, from = "detection_id", to = "id", on_delete = "Cascade")]
    pub detection: BelongsTo<super::detection::Entity>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { created_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

/// Class of a pose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum PoseClass {
    Standing,
    Crouching,
    BendingOver,
    ArmsRaised,
    Sitting,
    LyingDown,
    Unknown,
}
