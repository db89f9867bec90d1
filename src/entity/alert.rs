//! Table `alerts`: alerts raised by rules or by clients.

use sea_orm::{Set, entity::prelude::*};

use super::Strings;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "alerts")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub event_id: i64,
    pub rule_id: Option<Uuid>,
    pub severity: AlertSeverity,
    pub status: AlertStatus,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    pub delivered_at: Option<DateTimeUtc>,
    #[sea_orm(column_type = "Json", nullable)]
    pub channels: Option<Strings>,
    pub dedup_key: String,
    pub metadata: Option<Json>,
    /// Optimistic lock: incremented by every write; writes based on an older version are refused.
    pub version_id: i32,
    /// Camera of the event, copied for lists by camera.
    pub camera_id: Option<String>,
    /// Number of suppressed repeats represented by this alert.
    pub suppressed_count: i64,
    pub last_suppressed_at: Option<DateTimeUtc>,
    pub acknowledged_at: Option<DateTimeUtc>,
    pub acknowledged_by: Option<String>,
    pub dismissed_at: Option<DateTimeUtc>,
    pub dismissed_by: Option<String>,
    #[sea_orm(belongs_to, from = "event_id", to = "id", on_delete = "Cascade")]
    pub event: BelongsTo<super::event::Entity>,
    #[sea_orm(belongs_to, from = "rule_id", to = "id", on_delete = "SetNull")]
    pub rule: BelongsTo<Option<super::alert_rule::Entity>>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        let now = super::now();
        Self {
            id: Set(Uuid::now_v7()),
            created_at: Set(now),
            updated_at: Set(now),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}

/// Severity of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Enum", enum_name = "alert_severity", rename_all = "snake_case")]
pub enum AlertSeverity {
    Low,
    Medium,
    High,
    Critical,
}

/// Status of an alert in its lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Enum", enum_name = "alert_status", rename_all = "snake_case")]
pub enum AlertStatus {
    Pending,
    Delivered,
    Acknowledged,
    Dismissed,
}

impl AlertStatus {
    /// Returns true if an alert in this status may change to `next`.
    pub fn may_become(self, next: Self) -> bool {
        use AlertStatus::{Acknowledged, Delivered, Dismissed, Pending};
        match self {
            Pending => matches!(next, Delivered | Acknowledged | Dismissed),
            Delivered => matches!(next, Acknowledged | Dismissed),
            Acknowledged => next == Dismissed,
            Dismissed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::AlertStatus::{self, Acknowledged, Delivered, Dismissed, Pending};
    use sea_orm::Iterable;

    #[test]
    fn a_status_moves_forward_only() {
        let moves: [(AlertStatus, &[AlertStatus]); 4] = [
            (Pending, &[Delivered, Acknowledged, Dismissed]),
            (Delivered, &[Acknowledged, Dismissed]),
            (Acknowledged, &[Dismissed]),
            (Dismissed, &[]),
        ];
        for (status, allowed) in moves {
            for next in AlertStatus::iter() {
                let expected = allowed.contains(&next);
                assert_eq!(status.may_become(next), expected, "{status:?} to {next:?}");
            }
        }
    }
}
