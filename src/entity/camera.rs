//! `cameras`: where everything that is seen comes from.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "cameras")]
pub struct Model {
    /// The name of its folder, normalised.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub name: String,
    /// Where its pictures are uploaded to.
    pub folder_path: String,
    pub status: CameraStatus,
    pub created_at: DateTimeUtc,
    /// When its last picture came.
    pub last_seen_at: Option<DateTimeUtc>,
    /// Set while it is hidden from lists; its rows stay.
    pub deleted_at: Option<DateTimeUtc>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self {
            created_at: Set(super::now()),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}

/// Whether a camera sends pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "String(StringLen::None)",
    rename_all = "snake_case"
)]
pub enum CameraStatus {
    Online,
    Offline,
    Error,
    Unknown,
}
