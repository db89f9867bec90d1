//! Table `alert_flaps`: number of recent matches per rule with flap detection.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "alert_flaps")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub rule_id: Uuid,
    /// Start of the last window, in microseconds since 1970.
    pub window_started_at_us: i64,
    /// Number of matches in this window.
    pub matches: i64,
    /// Alert that represents the suppressed matches. Not a foreign key, because the alert may be
    /// deleted.
    pub alert_id: Option<Uuid>,
}

impl ActiveModelBehavior for ActiveModel {}
