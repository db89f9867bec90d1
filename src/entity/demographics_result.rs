//! Table `demographics_results`: estimated age and gender of a detected person.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "demographics_results")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub detection_id: i64,
    pub age_range: Option<AgeRange>,
    /// Confidence of the age range, 0 to 1.
    pub age_confidence: Option<f64>,
    pub gender: Option<Gender>,
    /// Confidence of the gender, 0 to 1.
    pub gender_confidence: Option<f64>,
    pub created_at: DateTimeUtc,
    #[sea_orm(belongs_to, from = "detection_id", to = "id", on_delete = "Cascade")]
    pub detection: BelongsTo<super::detection::Entity>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { created_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

/// Age range in years, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)")]
pub enum AgeRange {
    #[sea_orm(string_value = "0-10")]
    From0To10,
    #[sea_orm(string_value = "11-20")]
    From11To20,
    #[sea_orm(string_value = "21-30")]
    From21To30,
    #[sea_orm(string_value = "31-40")]
    From31To40,
    #[sea_orm(string_value = "41-50")]
    From41To50,
    #[sea_orm(string_value = "51-60")]
    From51To60,
    #[sea_orm(string_value = "61-70")]
    From61To70,
    #[sea_orm(string_value = "71-80")]
    From71To80,
    #[sea_orm(string_value = "81+")]
    From81,
    #[sea_orm(string_value = "unknown")]
    Unknown,
}

/// Gender estimated by the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum Gender {
    Male,
    Female,
    Unknown,
}
