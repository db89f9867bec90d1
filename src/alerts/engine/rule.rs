//! Alert rule, compiled from a row for evaluation.

use std::{collections::HashSet, sync::Arc};

use uuid::Uuid;

use super::{schedule::Schedule, template::Template};
use crate::{
    alerts::suppression::flapping::FlapLimit,
    entity::{
        Strings,
        alert::AlertSeverity,
        alert_rule::{self, EscalationStep},
    },
    error::{Error, Result},
};

/// Alert rule, compiled for evaluation.
#[derive(Debug)]
pub struct Rule {
    pub id: Uuid,
    pub name: String,
    pub severity: AlertSeverity,
    pub risk_threshold: Option<i32>,
    /// Object types in lower case. Empty matches any type. A linear scan of the few types is faster
    /// than hashing.
    pub object_types: Vec<String>,
    /// Camera ids. Empty matches any camera.
    pub camera_ids: HashSet<String>,
    /// Zone ids. Empty matches any place.
    pub zone_ids: HashSet<String>,
    pub min_confidence: Option<f64>,
    pub schedule: Option<Schedule>,
    pub template: Template,
    /// Cooldown in microseconds.
    pub cooldown_us: i64,
    /// Flapping limit. `None` for a rule without a limit.
    pub flap_limit: Option<FlapLimit>,
    pub channels: Option<Strings>,
    /// Escalation steps, copied to the deliveries of every alert.
    pub escalation: Arc<[EscalationStep]>,
    /// Conditions in readable form, stored in the metadata of every alert.
    pub conditions: Vec<String>,
}

impl Rule {
    /// Compiles a row. Fails for a row that violates the API's validation, such as a row of another
    /// program.
    pub fn compile(row: alert_rule::Model) -> Result<Self> {
        let set = |strings: &Option<Strings>| strings.clone().unwrap_or_default().0.into_iter().collect::<HashSet<_>>();
        // The API translates legacy conditions into columns. Ignoring untranslated conditions would
        // raise too many alerts.
        if row.conditions.as_ref().is_some_and(|conditions| !conditions.is_null()) {
            return Err(Error::invalid("conditions", "are of an old form, which is not evaluated"));
        }
        let descriptions = describe_conditions(&row);
        Ok(Self {
            id: row.id,
            severity: row.severity,
            risk_threshold: row.risk_threshold,
            object_types: set(&row.object_types).iter().map(|name| name.to_lowercase()).collect(),
            camera_ids: set(&row.camera_ids),
            zone_ids: set(&row.zone_ids),
            min_confidence: row.min_confidence,
            schedule: row.schedule.as_ref().map(Schedule::compile).transpose()?,
            template: Template::parse("dedup_key_template", &row.dedup_key_template)?,
            cooldown_us: i64::from(row.cooldown_seconds) * 1_000_000,
            flap_limit: FlapLimit::of(&row),
            channels: row.channels,
            escalation: row.escalation.unwrap_or_default().0.into(),
            name: row.name,
            conditions: descriptions,
        })
    }
}

/// Describes the conditions of a rule in readable form.
fn describe_conditions(row: &alert_rule::Model) -> Vec<String> {
    let list = |name: &str, strings: &Option<Strings>| {
        let strings = strings.as_ref().filter(|strings| !strings.0.is_empty())?;
        Some(format!("{name} in [{}]", strings.0.join(", ")))
    };
    let conditions: Vec<_> = [
        row.risk_threshold.map(|score| format!("risk_score >= {score}")),
        list("camera_id", &row.camera_ids),
        list("object_type", &row.object_types),
        row.min_confidence.map(|confidence| format!("confidence >= {confidence}")),
        list("zone_id", &row.zone_ids),
        row.schedule.as_ref().map(|_| "within_schedule".to_string()),
    ]
    .into_iter()
    .flatten()
    .collect();
    if conditions.is_empty() { vec!["no_conditions (always matches)".to_string()] } else { conditions }
}
