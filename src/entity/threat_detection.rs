//! Table `threat_detections`: detected weapons.

use sea_orm::{Set, entity::prelude::*};

use super::Severity;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "threat_detections")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub detection_id: i64,
    pub threat_type: ThreatType,
    /// Confidence of the detection, 0 to 1.
    pub confidence: f64,
    pub severity: Severity,
    /// Corners of the bounding box, `[x1, y1, x2, y2]`.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub bbox: Option<Json>,
    pub created_at: DateTimeUtc,
    #[sea_orm(belongs_to, from = "detection_id", to = "id", on_delete = "Cascade")]
    pub detection: BelongsTo<super::detection::Entity>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { created_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

/// Kind of a detected weapon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum ThreatType {
    Gun,
    Knife,
    Grenade,
    Explosive,
    Weapon,
    Other,
}
