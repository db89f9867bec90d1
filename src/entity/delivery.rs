//! Table `deliveries`: notification outbox, with one row per alert, channel and escalation step.

use sea_orm::entity::prelude::*;

use super::Severity;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "deliveries")]
pub struct Model {
    /// Idempotency key for the receiver.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub alert_id: Uuid,
    pub channel_id: Option<Uuid>,
    pub channel_name: String,
    /// Escalation step: 0 for the initial notification, from 1 for steps of the rule's escalation.
    pub escalation_step: i32,
    /// Severity of the alert.
    pub severity: Severity,
    pub status: DeliveryStatus,
    /// Number of started attempts.
    pub attempts: i32,
    /// Number of failed attempts since the delivery was queued.
    pub failures: i32,
    /// Time of the next attempt or, while leased, the expiry of the lease. NULL unless queued.
    pub next_attempt_at: Option<DateTimeUtc>,
    pub last_attempt_at: Option<DateTimeUtc>,
    /// Lease of the running attempt; only the owner may report the result.
    pub lease_id: Option<Uuid>,
    pub last_error: Option<String>,
    /// HTTP status or SMTP code of the last attempt.
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

/// Status of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Text", rename_all = "snake_case")]
pub enum DeliveryStatus {
    Queued,
    Delivered,
    Dead,
    Cancelled,
}
