//! `camera_zones`: the parts of a picture that mean something.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "camera_zones")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub camera_id: String,
    pub name: String,
    pub zone_type: ZoneType,
    /// The corners, `[[x, y], …]`, each number from 0 to 1.
    #[sea_orm(column_type = "JsonBinary")]
    pub coordinates: Json,
    pub shape: ZoneShape,
    /// `#` and six hexadecimal digits.
    pub color: String,
    pub enabled: bool,
    pub priority: i32,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    pub anchor: ZoneAnchor,
    /// The part of a box that must lie in the zone, above 0 and up to 1. With `ZoneAnchor::Overlap`
    /// only.
    pub min_overlap: Option<f64>,
    /// Raised by one with every change.
    pub version_id: i32,
    #[sea_orm(belongs_to, from = "camera_id", to = "id", on_delete = "Cascade")]
    pub camera: BelongsTo<super::camera::Entity>,
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

/// What a zone is a picture of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Enum",
    enum_name = "camera_zone_type_enum",
    rename_all = "snake_case"
)]
pub enum ZoneType {
    EntryPoint,
    Driveway,
    Sidewalk,
    Yard,
    Other,
}

/// How the corners of a zone are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "Enum",
    enum_name = "camera_zone_shape_enum",
    rename_all = "snake_case"
)]
pub enum ZoneShape {
    Rectangle,
    Polygon,
}

/// What of a detection must lie in a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "String(StringLen::None)",
    rename_all = "snake_case"
)]
pub enum ZoneAnchor {
    Center,
    Foot,
    Overlap,
}
