//! Table `alert_rules`: rules that raise alerts for events.

use sea_orm::{FromJsonQueryResult, Set, entity::prelude::*};
use serde::{Deserialize, Serialize};

use super::{Strings, alert::AlertSeverity};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "alert_rules")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub name: String,
    pub description: Option<String>,
    pub enabled: bool,
    pub severity: AlertSeverity,
    /// Minimum risk score for a match, 0 to 100.
    pub risk_threshold: Option<i32>,
    #[sea_orm(column_type = "Json", nullable)]
    pub object_types: Option<Strings>,
    #[sea_orm(column_type = "Json", nullable)]
    pub camera_ids: Option<Strings>,
    #[sea_orm(column_type = "Json", nullable)]
    pub zone_ids: Option<Strings>,
    /// Minimum confidence for a match, 0 to 1.
    pub min_confidence: Option<f64>,
    #[sea_orm(column_type = "Json", nullable)]
    pub schedule: Option<Schedule>,
    /// Conditions in a legacy format: stored, never evaluated.
    pub conditions: Option<Json>,
    pub dedup_key_template: String,
    /// Time in seconds for which repeats of a deduplication key are suppressed.
    pub cooldown_seconds: i32,
    #[sea_orm(column_type = "Json", nullable)]
    pub channels: Option<Strings>,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    /// Version, incremented by every change.
    pub version_id: i32,
    /// Maximum number of alerts per window before the rule counts as flapping. Requires
    /// `flap_window_seconds`.
    pub flap_threshold: Option<i32>,
    /// Length of the flapping window in seconds.
    pub flap_window_seconds: Option<i32>,
    /// Further notifications of an unacknowledged alert.
    #[sea_orm(column_type = "Json", nullable)]
    pub escalation: Option<Escalation>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        let now = super::now();
        Self {
            id: Set(Uuid::now_v7()),
            created_at: Set(now),
            updated_at: Set(now),
            version_id: Set(1),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}

/// Escalation of an unacknowledged alert: steps in ascending order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, FromJsonQueryResult)]
pub struct Escalation(pub Vec<EscalationStep>);

/// Step of an escalation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EscalationStep {
    /// Seconds after the alert was raised.
    pub after_seconds: i32,
    /// Names of the notified channels.
    pub channels: Vec<String>,
}

/// Weekly time window of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, FromJsonQueryResult)]
#[serde(default)]
pub struct Schedule {
    /// Days on which the window starts; empty for every day.
    pub days: Vec<Weekday>,
    /// Start of the window, `HH:MM` in `timezone`.
    pub start_time: Option<String>,
    /// End of the window, `HH:MM` in `timezone`; on the next day if before `start_time`.
    pub end_time: Option<String>,
    /// Name of the time zone in the IANA database.
    pub timezone: String,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { days: Vec::new(), start_time: None, end_time: None, timezone: "UTC".to_owned() }
    }
}

/// Day of the week, in the order of ISO 8601.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weekday {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

#[cfg(test)]
mod tests {
    use super::{Schedule, Weekday};

    #[test]
    fn a_schedule_may_leave_out_what_it_does_not_limit() {
        let read = |json| serde_json::from_value::<Schedule>(json).expect("a schedule");
        assert_eq!(read(serde_json::json!({})), Schedule::default());
        let weekend = read(serde_json::json!({ "days": ["saturday", "sunday"] }));
        assert_eq!(weekend.days, [Weekday::Saturday, Weekday::Sunday]);
        assert_eq!(weekend.timezone, "UTC");
    }
}
