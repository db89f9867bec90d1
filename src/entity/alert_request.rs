//! `alert_requests`: which requests alerts were raised for by hand, so that a repeat is known.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "alert_requests")]
pub struct Model {
    /// The client's own id of the request.
    #[sea_orm(primary_key, auto_increment = false)]
    pub request_id: String,
    /// A hash of the request: a repeat must say the same.
    pub fingerprint: Vec<u8>,
    /// The alert that it was answered with.
    pub alert_id: Uuid,
    /// Whether it raised this alert.
    pub created: bool,
    pub created_at: DateTimeUtc,
    #[sea_orm(belongs_to, from = "alert_id", to = "id", on_delete = "Cascade")]
    pub alert: BelongsTo<super::alert::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
