//! Table `camera_zones`: named areas of a camera's image.

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
    /// Corners, `[[x, y], …]`, with relative coordinates from 0 to 1.
    #[sea_orm(column_type = "JsonBinary")]
    pub coordinates: Json,
    pub shape: ZoneShape,
    /// Colour as `#` and six hexadecimal digits.
    pub color: String,
    pub enabled: bool,
    pub priority: i32,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    pub anchor: ZoneAnchor,
    /// Minimum share of a bounding box inside the zone, above 0 and up to 1. Only for
    /// `ZoneAnchor::Overlap`.
    pub min_overlap: Option<f64>,
    /// Version, incremented by every change.
    pub version_id: i32,
    #[sea_orm(belongs_to, from = "camera_id", to = "id", on_delete = "Cascade")]
    pub camera: BelongsTo<super::camera::Entity>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        let now = super::now();
        Self { created_at: Set(now), updated_at: Set(now), ..<Self as ActiveModelTrait>::default() }
    }
}

/// Kind of area covered by a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Enum", enum_name = "camera_zone_type_enum", rename_all = "snake_case")]
pub enum ZoneType {
    EntryPoint,
    Driveway,
    Sidewalk,
    Yard,
    Other,
}

/// Geometry of a zone's corners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Enum", enum_name = "camera_zone_shape_enum", rename_all = "snake_case")]
pub enum ZoneShape {
    Rectangle,
    Polygon,
}

/// Part of a detection that must lie in the zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum ZoneAnchor {
    Center,
    Foot,
    Overlap,
}
