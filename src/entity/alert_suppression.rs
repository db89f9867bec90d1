//! `alert_suppressions`: alerts that were not raised although a rule matched, and why.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "alert_suppressions")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub event_id: i64,
    pub rule_id: Option<Uuid>,
    /// The camera of the event, for lists by camera.
    pub camera_id: String,
    pub dedup_key: String,
    pub reason: SuppressionReason,
    /// With `SuppressionReason::Silenced`. No foreign key: nobody deletes silences, and no ingest waits
    /// for a change of one.
    pub silence_id: Option<Uuid>,
    /// With `SuppressionReason::Flapping` and `SuppressionReason::Cooldown`: the alert that stands for it. No foreign key: it may be gone.
    pub alert_id: Option<Uuid>,
    pub created_at: DateTimeUtc,
    #[sea_orm(belongs_to, from = "event_id", to = "id", on_delete = "Cascade")]
    pub event: BelongsTo<super::event::Entity>,
    #[sea_orm(belongs_to, from = "rule_id", to = "id", on_delete = "SetNull")]
    pub rule: BelongsTo<Option<super::alert_rule::Entity>>,
}

impl ActiveModelBehavior for ActiveModel {}

/// Why an alert was not raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "String(StringLen::None)",
    rename_all = "snake_case"
)]
pub enum SuppressionReason {
    Silenced,
    Snoozed,
    Flapping,
    Cooldown,
}
