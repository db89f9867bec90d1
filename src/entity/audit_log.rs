//! Table `audit_logs`: actions of users and components on resources.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "audit_logs")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub timestamp: DateTimeUtc,
    pub action: String,
    pub resource_type: String,
    pub resource_id: Option<String>,
    pub actor: String,
    pub ip_address: Option<String>,
    pub user_agent: Option<String>,
    /// Structured context of the action.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub details: Option<Json>,
    pub status: AuditStatus,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { timestamp: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

/// Result of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum AuditStatus {
    Success,
    Failure,
}
