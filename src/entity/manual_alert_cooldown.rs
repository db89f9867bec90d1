//! `manual_alert_cooldowns`: which repeats of an alert that was raised by hand are held back.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "manual_alert_cooldowns")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub dedup_key: String,
    /// The alert that started the cooldown. No foreign key: it may be gone.
    pub alert_id: Uuid,
    /// Microseconds since 1970.
    pub raised_at_us: i64,
    /// Microseconds.
    pub cooldown_us: i64,
    /// How many repeats were held back.
    pub suppressed_count: i64,
    /// Microseconds since 1970.
    pub last_suppressed_at_us: Option<i64>,
}

impl ActiveModelBehavior for ActiveModel {}
