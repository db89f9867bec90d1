//! Table `alert_requests`: idempotency keys of manually raised alerts.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "alert_requests")]
pub struct Model {
    /// Idempotency key chosen by the client.
    #[sea_orm(primary_key, auto_increment = false)]
    pub request_id: String,
    /// Hash of the request; a repeat must have the same content.
    pub fingerprint: Vec<u8>,
    /// Alert returned to the first request.
    pub alert_id: Uuid,
    /// True if the request raised the alert; false if the alert existed.
    pub created: bool,
    pub created_at: DateTimeUtc,
    #[sea_orm(belongs_to, from = "alert_id", to = "id", on_delete = "Cascade")]
    pub alert: BelongsTo<super::alert::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
