//! `alert_flaps`: how often each rule that may flap has fired of late.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "alert_flaps")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub rule_id: Uuid,
    /// When the last window began, in microseconds since 1970.
    pub window_started_at_us: i64,
    /// How often the rule wanted to raise an alert in this window.
    pub matches: i64,
    /// The alert that stands for those that are held back. No foreign key: it may be gone.
    pub alert_id: Option<Uuid>,
}

impl ActiveModelBehavior for ActiveModel {}
