//! `deliveries`: what was and is to be told of an alert, by which channel.

use sea_orm::entity::prelude::*;

use super::Severity;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "deliveries")]
pub struct Model {
    /// What a receiver knows a repetition by.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub alert_id: Uuid,
    pub channel_id: Option<Uuid>,
    pub channel_name: String,
    /// 0: when the alert is raised. From 1: a step of the rule's escalation.
    pub escalation_step: i32,
    /// That of the alert.
    pub severity: Severity,
    pub status: DeliveryStatus,
    /// How often it was begun.
    pub attempts: i32,
    /// How often it has failed since it was queued.
    pub failures: i32,
    /// When to begin it, or, under a lease, when another may. NULL unless it is queued.
    pub next_attempt_at: Option<DateTimeUtc>,
    pub last_attempt_at: Option<DateTimeUtc>,
    /// Who has begun it, and may say what came of it.
    pub lease_id: Option<Uuid>,
    pub last_error: Option<String>,
    /// The status of HTTP, or the code of SMTP.
    pub last_status_code: Option<i32>,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    pub delivered_at: Option<DateTimeUtc>,
    #[sea_orm(belongs_to, from = "alert_id", to = "id", on_delete = "Cascade")]
    pub alert: BelongsTo<super::alert::Entity>,
    #[sea_orm(belongs_to, from = "channel_id", to = "id", on_delete = "SetNull")]
    pub channel: BelongsTo<Option<super::notification_channel::Entity>>,
}

impl ActiveModelBehavior for ActiveModel {}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Text", rename_all = "snake_case")]
pub enum DeliveryStatus {
    Queued,
    Delivered,
    Dead,
    Cancelled,
}
