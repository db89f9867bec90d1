//! `alert_transitions`: how an alert was raised, and each change of its status.

use sea_orm::entity::prelude::*;

use super::alert::AlertStatus;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "alert_transitions")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub alert_id: Uuid,
    /// `None` when it was raised.
    pub from_status: Option<AlertStatus>,
    pub to_status: AlertStatus,
    /// The version of the alert after it.
    pub version_id: i32,
    /// Who did it.
    pub actor: String,
    #[sea_orm(column_type = "Text", nullable)]
    pub reason: Option<String>,
    pub created_at: DateTimeUtc,
    #[sea_orm(belongs_to, from = "alert_id", to = "id", on_delete = "Cascade")]
    pub alert: BelongsTo<super::alert::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
