//! Reader of rule documents. Refuses unknown and repeated keys. Errors have the position in the
//! document.

use std::{collections::HashMap, fmt, marker::PhantomData};

use sea_orm::ActiveEnum;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::format::{FORMAT, MAX_BYTES, MAX_RULES, VERSION};
use crate::{
    alerts::engine::schedule,
    entity::{
        alert::AlertSeverity,
        alert_rule::{self, Weekday},
    },
    error::{Error, Result},
    pb,
    rpc::{check, json},
};

/// Rule of a document.
#[derive(Debug)]
pub(super) struct Entry {
    pub id: Option<Uuid>,
    /// The bounds of the fields are not checked yet.
    pub rule: pb::AlertRule,
}

/// Keys that identify the format. Other keys may differ between versions.
#[derive(Deserialize)]
struct Header {
    format: Option<Value>,
    version: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "format")]
    _format: IgnoredAny,
    #[serde(rename = "version")]
    _version: IgnoredAny,
    alert_rules: Option<Vec<Object<Rule>>>,
}

/// Rule as written in a document. A null value equals an absent key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    id: Option<String>,
    name: Option<String>,
    description: Option<String>,
    enabled: Option<bool>,
    severity: Option<SeverityLabel>,
    risk_threshold: Option<i32>,
    object_types: Option<Vec<String>>,
    camera_ids: Option<Vec<String>>,
    zone_ids: Option<Vec<String>>,
    min_confidence: Option<f64>,
    schedule: Option<Object<Schedule>>,
    conditions: Option<Map<String, Value>>,
    dedup_key_template: Option<String>,
    cooldown: Option<DurationText>,
    channels: Option<Vec<String>>,
    flap_threshold: Option<i32>,
    flap_window: Option<DurationText>,
    escalation: Option<Vec<Object<Step>>>,
    // Output only: any value is accepted and ignored.
    #[serde(rename = "created_at")]
    _created_at: Option<IgnoredAny>,
    #[serde(rename = "updated_at")]
    _updated_at: Option<IgnoredAny>,
    #[serde(rename = "version_id")]
    _version_id: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Schedule {
    days: Option<Vec<DayLabel>>,
    start_time: Option<String>,
    end_time: Option<String>,
    time_zone: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    after: Option<DurationText>,
    channels: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct SeverityLabel(AlertSeverity);

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct DayLabel(Weekday);

/// Duration in the JSON form of protobuf, such as `300s`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct DurationText(prost_types::Duration);

/// Struct that is read from an object only. Derived implementations accept arrays of values, too.
struct Object<T>(T);

/// Reads a document.
pub(super) fn read(document: &str) -> Result<Vec<Entry>> {
    if document.is_empty() {
        return Err(Error::invalid("document", "is required"));
    }
    if document.len() > MAX_BYTES {
        let problem = format!("must have at most {MAX_BYTES} bytes");
        return Err(Error::invalid("document", problem));
    }
    // The header is read first: a document of another version may have other keys.
    let Object(header) = deserialize::<Header>(document)?;
    if header.format != Some(FORMAT.into()) {
        return Err(Error::invalid("format", format!("must be `{FORMAT}`")));
    }
    if header.version != Some(VERSION.into()) {
        let problem = format!("must be {VERSION}, the version that this server supports");
        return Err(Error::invalid("version", problem));
    }
    let Object(Document { alert_rules, .. }) = deserialize(document)?;
    let rules = alert_rules.ok_or_else(|| Error::invalid("alert_rules", "is required"))?;
    if rules.len() > MAX_RULES {
        let problem = format!("must have at most {MAX_RULES} entries");
        return Err(Error::invalid("alert_rules", problem));
    }
    let mut positions = HashMap::with_capacity(rules.len());
    let mut entries = Vec::with_capacity(rules.len());
    for (position, Object(rule)) in rules.into_iter().enumerate() {
        let entry = rule.into_entry(position)?;
        if let Some(id) = entry.id
            && let Some(first) = positions.insert(id, position)
        {
            let problem = format!("must be unique, alert_rules[{first}] has the same id");
            let field = format!("alert_rules[{position}].id");
            return Err(Error::invalid(field, problem));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// Deserializes JSON. Errors have the path of the value as the field.
fn deserialize<'de, T: Deserialize<'de>>(document: &'de str) -> Result<Object<T>> {
    let mut json = serde_json::Deserializer::from_str(document);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        // A malformed key has the path `?`.
        let field = match path.as_str() {
            "." | "?" => "document",
            path => path.trim_end_matches(".?"),
        };
        let field = field.to_string();
        Error::invalid(field, format!("cannot be read: {}", error.into_inner()))
    })?;
    json.end().map_err(|error| Error::invalid("document", format!("cannot be read: {error}")))?;
    Ok(value)
}

impl Rule {
    fn into_entry(self, position: usize) -> Result<Entry> {
        let id = self.id.map(|id| {
            let field = format!("alert_rules[{position}].id");
            check::uuid(&field, &id)
        });
        let severity = self.severity.map(|label| pb::Severity::from(label.0));
        let steps = self.escalation.unwrap_or_default().into_iter();
        let rule = pb::AlertRule {
            name: self.name.unwrap_or_default(),
            description: self.description,
            enabled: self.enabled,
            severity: severity.unwrap_or_default().into(),
            risk_threshold: self.risk_threshold,
            object_types: self.object_types.unwrap_or_default(),
            camera_ids: self.camera_ids.unwrap_or_default(),
            zone_ids: self.zone_ids.unwrap_or_default(),
            min_confidence: self.min_confidence,
            schedule: self.schedule.map(|Object(schedule)| schedule.into()),
            conditions: self.conditions.and_then(|conditions| json::to_proto_unbounded(Value::Object(conditions))),
            dedup_key_template: self.dedup_key_template,
            cooldown: self.cooldown.map(|text| text.0),
            channels: self.channels.unwrap_or_default(),
            flap_threshold: self.flap_threshold,
            flap_window: self.flap_window.map(|text| text.0),
            escalation: steps.map(|Object(step)| step.into()).collect(),
            ..Default::default()
        };
        Ok(Entry { id: id.transpose()?, rule })
    }
}

impl From<Schedule> for pb::Schedule {
    fn from(schedule: Schedule) -> Self {
        let days = schedule.days.unwrap_or_default().into_iter();
        schedule::to_proto(alert_rule::Schedule {
            days: days.map(|DayLabel(day)| day).collect(),
            start_time: schedule.start_time,
            end_time: schedule.end_time,
            timezone: schedule.time_zone.unwrap_or_default(),
        })
    }
}

impl From<Step> for pb::EscalationStep {
    fn from(step: Step) -> Self {
        Self { after: step.after.map(|text| text.0), channels: step.channels.unwrap_or_default() }
    }
}

impl TryFrom<String> for SeverityLabel {
    type Error = &'static str;

    fn try_from(label: String) -> Result<Self, Self::Error> {
        let severity = AlertSeverity::try_from_value(&label);
        let problem = "must be low, medium, high or critical";
        severity.map(Self).map_err(|_| problem)
    }
}

impl TryFrom<String> for DurationText {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let duration = text.parse();
        duration.map(Self).map_err(|_| "must be a duration such as `300s`")
    }
}

impl TryFrom<String> for DayLabel {
    type Error = &'static str;

    fn try_from(label: String) -> Result<Self, Self::Error> {
        let day = serde_json::from_value(label.into());
        day.map(Self).map_err(|_| "must be a day, monday to sunday")
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(object)).map(Object)
    }
}

#[cfg(test)]
mod tests;
