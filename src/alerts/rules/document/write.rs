//! Writer of rule documents. Equal rules give equal bytes.

use sea_orm::ActiveEnum;
use serde::Serialize;
use uuid::Uuid;

use super::format::{FORMAT, VERSION};
use crate::{
    entity::{
        Strings,
        alert_rule::{self, Escalation, Weekday},
    },
    error::{Error, Result},
    rpc::time,
};

/// Document under construction.
#[derive(Debug)]
pub(super) struct Document {
    text: String,
    /// Number of rules written so far.
    pub rules: usize,
    with_output_only: bool,
}

/// Rule of a document, with fields in the order of the API.
#[derive(Serialize)]
struct Rule<'a> {
    id: Uuid,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    enabled: bool,
    severity: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    risk_threshold: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_types: Option<&'a Strings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    camera_ids: Option<&'a Strings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone_ids: Option<&'a Strings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_confidence: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<Schedule<'a>>,
    dedup_key_template: &'a str,
    cooldown: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<&'a Strings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    updated_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_id: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flap_threshold: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flap_window: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    escalation: Option<Vec<Step<'a>>>,
}

#[derive(Serialize)]
struct Step<'a> {
    after: String,
    channels: &'a [String],
}

#[derive(Serialize)]
struct Schedule<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    days: &'a [Weekday],
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<&'a str>,
    time_zone: &'a str,
}

impl Document {
    /// Starts a document without rules.
    pub(super) fn new(with_output_only: bool) -> Self {
        Self {
            text: format!("{{\n  \"format\": \"{FORMAT}\",\n  \"version\": {VERSION},\n  \"alert_rules\": ["),
            rules: 0,
            with_output_only,
        }
    }

    /// Appends a rule.
    pub(super) fn add(&mut self, rule: &alert_rule::Model) -> Result<()> {
        let rule = serde_json::to_string_pretty(&self.rule(rule)).map_err(Error::internal)?;
        if self.rules > 0 {
            self.text.push(',');
        }
        // JSON escapes line feeds in texts, so that every line feed is formatting.
        for line in rule.lines() {
            self.text.push_str("\n    ");
            self.text.push_str(line);
        }
        self.rules += 1;
        Ok(())
    }

    /// Returns the present size in bytes.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// Completes the document.
    pub(super) fn finish(mut self) -> String {
        self.text.push_str(if self.rules > 0 { "\n  ]\n}\n" } else { "]\n}\n" });
        self.text
    }

    fn rule<'a>(&self, rule: &'a alert_rule::Model) -> Rule<'a> {
        fn strings(values: Option<&Strings>) -> Option<&Strings> {
            values.filter(|values| !values.0.is_empty())
        }
        fn seconds(seconds: i32) -> String {
            time::duration_from_seconds(seconds).to_string()
        }
        fn steps(escalation: &Escalation) -> Option<Vec<Step<'_>>> {
            let steps =
                escalation.0.iter().map(|step| Step { after: seconds(step.after_seconds), channels: &step.channels });
            Some(steps.collect()).filter(|steps: &Vec<_>| !steps.is_empty())
        }
        let schedule = |schedule: &'a alert_rule::Schedule| Schedule {
            days: &schedule.days,
            start_time: schedule.start_time.as_deref(),
            end_time: schedule.end_time.as_deref(),
            time_zone: &schedule.timezone,
        };
        let with_output_only = self.with_output_only;
        Rule {
            id: rule.id,
            name: &rule.name,
            description: rule.description.as_deref(),
            enabled: rule.enabled,
            severity: rule.severity.to_value(),
            risk_threshold: rule.risk_threshold,
            object_types: strings(rule.object_types.as_ref()),
            camera_ids: strings(rule.camera_ids.as_ref()),
            zone_ids: strings(rule.zone_ids.as_ref()),
            min_confidence: rule.min_confidence,
            schedule: rule.schedule.as_ref().map(schedule),
            dedup_key_template: &rule.dedup_key_template,
            cooldown: seconds(rule.cooldown_seconds),
            channels: strings(rule.channels.as_ref()),
            created_at: with_output_only.then(|| rule.created_at.to_rfc3339()),
            updated_at: with_output_only.then(|| rule.updated_at.to_rfc3339()),
            version_id: with_output_only.then_some(rule.version_id),
            flap_threshold: rule.flap_threshold,
            flap_window: rule.flap_window_seconds.map(seconds),
            escalation: rule.escalation.as_ref().and_then(steps),
        }
    }
}
