//! Table `alert_transitions`: creation and status changes of alerts.

use sea_orm::entity::prelude::*;

use super::alert::AlertStatus;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "alert_transitions")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub alert_id: Uuid,
    /// Previous status; `None` for the creation.
    pub from_status: Option<AlertStatus>,
    pub to_status: AlertStatus,
    /// Version of the alert after the transition.
    pub version_id: i32,
    /// Client or component that caused the transition.
    pub actor: String,
    #[sea_orm(column_type = "Text", nullable)]
    pub reason: Option<String>,
    pub created_at: DateTimeUtc,
    #[sea_orm(belongs_to, from = "alert_id", to = "id", on_delete = "Cascade")]
    pub alert: BelongsTo<super::alert::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
