//! Validation and update of an alert rule.

use sea_orm::ActiveValue::{NotSet, Set};

use crate::{
    alerts::engine::{schedule, template::Template},
    db::row,
    entity::{
        self, Strings,
        alert::AlertSeverity,
        alert_rule::{self, ActiveModel},
    },
    error::{Error, Result},
    pb,
    rpc::{check, enums::FromProto, mask::UpdateMask, time},
};

/// Fields that `UpdateAlertRule` may change.
pub(crate) const UPDATABLE: [&str; 17] = [
    "name",
    "description",
    "enabled",
    "severity",
    "risk_threshold",
    "object_types",
    "camera_ids",
    "zone_ids",
    "min_confidence",
    "schedule",
    "conditions",
    "dedup_key_template",
    "cooldown",
    "channels",
    "flap_threshold",
    "flap_window",
    "escalation",
];

const DEFAULT_TEMPLATE: &str = "{camera_id}:{rule_id}";
const DEFAULT_COOLDOWN_SECONDS: i32 = 300;
const MAX_COOLDOWN_SECONDS: i32 = 31_536_000; // a year

/// Largest flapping threshold in alerts, and largest flapping window in seconds.
const MAX_FLAP_THRESHOLD: i32 = 10_000;
const MAX_FLAP_WINDOW_SECONDS: i32 = 86_400; // a day

impl pb::AlertRule {
    /// Returns the rule with the fields of `changes` that `mask` covers.
    pub(crate) fn with(mut self, changes: Self, mask: &UpdateMask) -> Self {
        macro_rules! change {
            ($field:ident, $is_set:expr) => {
                if mask.covers(stringify!($field), $is_set(&changes.$field)) {
                    self.$field = changes.$field;
                }
            };
        }
        change!(name, |name: &String| !name.is_empty());
        change!(description, Option::is_some);
        change!(enabled, Option::is_some);
        change!(severity, |severity: &i32| *severity != 0);
        change!(risk_threshold, Option::is_some);
        change!(object_types, |values: &Vec<_>| !values.is_empty());
        change!(camera_ids, |values: &Vec<_>| !values.is_empty());
        change!(zone_ids, |values: &Vec<_>| !values.is_empty());
        change!(min_confidence, Option::is_some);
        change!(schedule, Option::is_some);
        change!(conditions, Option::is_some);
        change!(dedup_key_template, Option::is_some);
        change!(cooldown, Option::is_some);
        change!(channels, |values: &Vec<_>| !values.is_empty());
        change!(flap_threshold, Option::is_some);
        change!(flap_window, Option::is_some);
        change!(escalation, |steps: &Vec<_>| !steps.is_empty());
        self
    }

    /// Validates the rule and returns the columns under the client's control. Absent fields get
    /// defaults.
    pub(crate) fn checked(&self) -> Result<ActiveModel> {
        let strings = |field: &str, values: &[String], max_values, max_chars| {
            let values = check::texts(&format!("alert_rule.{field}"), values, max_values, &(1..=max_chars))?;
            Ok::<_, Error>(Some(Strings(values)).filter(|values| !values.0.is_empty()))
        };
        let risk_threshold =
            self.risk_threshold.map(|score| check::within("alert_rule.risk_threshold", score, 0..=100));
        let min_confidence =
            self.min_confidence.map(|minimum| check::within("alert_rule.min_confidence", minimum, 0.0..=1.0));
        let schedule = self.schedule.as_ref().map(|schedule| schedule::from_proto("alert_rule.schedule", schedule));
        let template = self.dedup_key_template.as_deref().unwrap_or(DEFAULT_TEMPLATE);
        Template::parse("alert_rule.dedup_key_template", template)?;
        let (flap_threshold, flap_window_seconds) = self.flap_limit()?;
        let cooldown = self
            .cooldown
            .map(|cooldown| time::whole_seconds("alert_rule.cooldown", cooldown, &(0..=MAX_COOLDOWN_SECONDS)));
        Ok(ActiveModel {
            name: Set(check::name("alert_rule.name", &self.name, 1..=255)?),
            description: Set(check::optional_text("alert_rule.description", self.description.as_deref(), 0..=65_536)?),
            enabled: Set(self.enabled.unwrap_or(true)),
            severity: Set(
                AlertSeverity::from_proto("alert_rule.severity", self.severity)?.unwrap_or(AlertSeverity::Medium)
            ),
            risk_threshold: Set(risk_threshold.transpose()?),
            object_types: Set(strings("object_types", &self.object_types, 100, 255)?),
            camera_ids: Set(strings("camera_ids", &self.camera_ids, 1_000, 64)?),
            zone_ids: Set(strings("zone_ids", &self.zone_ids, 1_000, 64)?),
            min_confidence: Set(min_confidence.transpose()?),
            schedule: Set(schedule.transpose()?),
            dedup_key_template: Set(template.to_string()),
            cooldown_seconds: Set(cooldown.transpose()?.unwrap_or(DEFAULT_COOLDOWN_SECONDS)),
            conditions: Set(None),
            channels: Set(strings("channels", &self.channels, 100, 100)?),
            flap_threshold: Set(flap_threshold),
            flap_window_seconds: Set(flap_window_seconds),
            escalation: Set(self.checked_escalation()?),
            ..Default::default()
        })
    }

    /// Validates the flapping limit: threshold and window must be set together.
    fn flap_limit(&self) -> Result<(Option<i32>, Option<i32>)> {
        let threshold = self
            .flap_threshold
            .map(|threshold| check::within("alert_rule.flap_threshold", threshold, 1..=MAX_FLAP_THRESHOLD));
        let window = self.flap_window.map(|window| {
            let bounds = 1..=MAX_FLAP_WINDOW_SECONDS;
            time::whole_seconds("alert_rule.flap_window", window, &bounds)
        });
        let (threshold, window) = (threshold.transpose()?, window.transpose()?);
        let missing = match (threshold, window) {
            (Some(_), None) => ("flap_window", "flap_threshold"),
            (None, Some(_)) => ("flap_threshold", "flap_window"),
            (Some(_), Some(_)) | (None, None) => return Ok((threshold, window)),
        };
        Err(Error::invalid(format!("alert_rule.{}", missing.0), format!("is required with {}", missing.1)))
    }
}

/// Returns the row that replaces `before`, with the next version. `None` if no column differs.
pub(crate) fn next_version(mut row: ActiveModel, before: &alert_rule::Model) -> Option<ActiveModel> {
    row.id = Set(before.id);
    row.created_at = NotSet;
    row.updated_at = NotSet;
    row.version_id = NotSet;
    if !row::differs(&row, before) {
        return None;
    }
    // `updated_at` never decreases, even if the clock is set back.
    row.updated_at = Set(entity::now().max(before.updated_at));
    row.version_id = Set(before.version_id + 1);
    Some(row)
}
