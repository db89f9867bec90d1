//! `silences`: what holds alerts back for a time.

use sea_orm::{Set, entity::prelude::*};

use super::Strings;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "silences")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// None means any.
    #[sea_orm(column_type = "Json", nullable)]
    pub camera_ids: Option<Strings>,
    /// None means any.
    #[sea_orm(column_type = "Json", nullable)]
    pub rule_ids: Option<Strings>,
    /// Labels of `alert_severity`. None means any.
    #[sea_orm(column_type = "Json", nullable)]
    pub severities: Option<Strings>,
    /// Whether it is meant to hold back everything.
    pub match_all: bool,
    pub starts_at: DateTimeUtc,
    /// This instant is outside.
    pub ends_at: DateTimeUtc,
    pub created_by: String,
    pub reason: String,
    /// Raised by one with every change.
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
