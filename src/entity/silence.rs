//! Table `silences`: periods in which alerts are suppressed.

use sea_orm::{Set, entity::prelude::*};

use super::Strings;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "silences")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// Matching cameras; NULL for any camera.
    #[sea_orm(column_type = "Json", nullable)]
    pub camera_ids: Option<Strings>,
    /// Matching rules; NULL for any rule.
    #[sea_orm(column_type = "Json", nullable)]
    pub rule_ids: Option<Strings>,
    /// Matching severities, as labels of `alert_severity`; NULL for any severity.
    #[sea_orm(column_type = "Json", nullable)]
    pub severities: Option<Strings>,
    /// True if the silence explicitly matches every alert.
    pub match_all: bool,
    pub starts_at: DateTimeUtc,
    /// End of the silence, exclusive.
    pub ends_at: DateTimeUtc,
    pub created_by: String,
    pub reason: String,
    /// Version, incremented by every change.
    pub version_id: i32,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        let now = super::now();
        Self {
            id: Set(Uuid::now_v7()),
            version_id: Set(1),
            created_at: Set(now),
            updated_at: Set(now),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}
