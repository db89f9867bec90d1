//! Table `alert_suppressions`: alerts that were suppressed although a rule matched.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "alert_suppressions")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub event_id: i64,
    pub rule_id: Option<Uuid>,
    /// Camera of the event, copied for lists by camera.
    pub camera_id: String,
    pub dedup_key: String,
    pub reason: SuppressionReason,
    /// Silence for `SuppressionReason::Silenced`. Not a foreign key: silences are never deleted,
    /// and ingests must not wait for changes of a silence.
    pub silence_id: Option<Uuid>,
    /// Representing alert for `SuppressionReason::Flapping` and `SuppressionReason::Cooldown`. Not
    /// a foreign key, because the alert may be deleted.
    pub alert_id: Option<Uuid>,
    pub created_at: DateTimeUtc,
    #[sea_orm(belongs_to, from = "event_id", to = "id", on_delete = "Cascade")]
    pub event: BelongsTo<super::event::Entity>,
    #[sea_orm(belongs_to, from = "rule_id", to = "id", on_delete = "SetNull")]
    pub rule: BelongsTo<Option<super::alert_rule::Entity>>,
}

impl ActiveModelBehavior for ActiveModel {}

/// Reason for the suppression of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum SuppressionReason {
    Silenced,
    Snoozed,
    Flapping,
    Cooldown,
}
