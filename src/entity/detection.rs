//! Table `detections`: objects detected in an image or video.

use sea_orm::{Set, entity::prelude::*};

use super::Strings;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "detections")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub camera_id: String,
    pub file_path: String,
    /// MIME type of the file.
    pub file_type: Option<String>,
    pub detected_at: DateTimeUtc,
    pub object_type: Option<String>,
    /// Confidence of the detection, 0 to 1.
    pub confidence: Option<f64>,
    /// Left edge of the bounding box, in pixels.
    pub bbox_x: Option<i32>,
    /// Top edge of the bounding box, in pixels.
    pub bbox_y: Option<i32>,
    /// Width of the bounding box, in pixels.
    pub bbox_width: Option<i32>,
    /// Height of the bounding box, in pixels.
    pub bbox_height: Option<i32>,
    pub thumbnail_path: Option<String>,
    pub media_type: Option<MediaType>,
    /// Duration of the video, in seconds.
    pub duration: Option<f64>,
    pub video_codec: Option<String>,
    /// Width of the video, in pixels.
    pub video_width: Option<i32>,
    /// Height of the video, in pixels.
    pub video_height: Option<i32>,
    /// Results of vision models, by model.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub enrichment_data: Option<Json>,
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub labels: Option<Strings>,
    #[sea_orm(belongs_to, from = "camera_id", to = "id", on_delete = "Cascade")]
    pub camera: BelongsTo<super::camera::Entity>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { detected_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

/// Medium of a detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum MediaType {
    Image,
    Video,
}
