//! Table `cameras`: cameras that produce detections and events.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "cameras")]
pub struct Model {
    /// Normalised name of the camera's folder.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub name: String,
    /// Folder for uploaded images.
    pub folder_path: String,
    pub status: CameraStatus,
    pub created_at: DateTimeUtc,
    /// Time of the last image.
    pub last_seen_at: Option<DateTimeUtc>,
    /// Time of the soft deletion; the camera is hidden from lists, and its rows are kept.
    pub deleted_at: Option<DateTimeUtc>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { created_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

/// Connection status of a camera.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum CameraStatus {
    Online,
    Offline,
    Error,
    Unknown,
}
