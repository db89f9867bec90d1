//! Table `manual_alert_cooldowns`: last alert and cooldown per deduplication key of manually raised
//! alerts.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "manual_alert_cooldowns")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub dedup_key: String,
    /// Alert that started the cooldown. Not a foreign key, because the alert may be deleted.
    pub alert_id: Uuid,
    /// Time of the alert, in microseconds since 1970.
    pub raised_at_us: i64,
    /// Length of the cooldown in microseconds.
    pub cooldown_us: i64,
    /// Number of suppressed repeats.
    pub suppressed_count: i64,
    /// Time of the last suppressed repeat, in microseconds since 1970.
    pub last_suppressed_at_us: Option<i64>,
}

impl ActiveModelBehavior for ActiveModel {}
