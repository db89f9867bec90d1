//! `alert_rules`: which events raise an alert.

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
    /// The lowest risk score that matches, 0 to 100.
    pub risk_threshold: Option<i32>,
    #[sea_orm(column_type = "Json", nullable)]
    pub object_types: Option<Strings>,
    #[sea_orm(column_type = "Json", nullable)]
    pub camera_ids: Option<Strings>,
    #[sea_orm(column_type = "Json", nullable)]
    pub zone_ids: Option<Strings>,
    /// The lowest confidence that matches, 0 to 1.
    pub min_confidence: Option<f64>,
    #[sea_orm(column_type = "Json", nullable)]
    pub schedule: Option<Schedule>,
    /// Conditions of an older form: kept, never evaluated.
    pub conditions: Option<Json>,
    pub dedup_key_template: String,
    /// How long repeats of one `dedup_key` are held back.
    pub cooldown_seconds: i32,
    #[sea_orm(column_type = "Json", nullable)]
    pub channels: Option<Strings>,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    /// Raised by one with every change.
    pub version_id: i32,
    /// How many alerts a window may have before the rule flaps. With `flap_window_seconds` only.
    pub flap_threshold: Option<i32>,
    /// How long such a window is.
    pub flap_window_seconds: Option<i32>,
    /// Who is told later.
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

/// Who is told of an alert that nobody has taken care of, in the order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, FromJsonQueryResult)]
pub struct Escalation(pub Vec<EscalationStep>);

/// A step of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EscalationStep {
    /// After the alert was raised.
    pub after_seconds: i32,
    /// The names of channels.
    pub channels: Vec<String>,
}

/// When a rule applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, FromJsonQueryResult)]
#[serde(default)]
pub struct Schedule {
    /// None means every day.
    pub days: Vec<Weekday>,
    /// `HH:MM` in `timezone`.
    pub start_time: Option<String>,
    /// `HH:MM` in `timezone`; before `start_time` it is one of the next day.
    pub end_time: Option<String>,
    /// A name of the IANA time zone database.
    pub timezone: String,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            days: Vec::new(),
            start_time: None,
            end_time: None,
            timezone: "UTC".to_owned(),
        }
    }
}

/// A day of the week, in the order of ISO 8601.
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
