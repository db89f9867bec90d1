//! Reading a document. Nothing is ignored, and what is wrong is named by its place.

use std::{collections::HashMap, fmt};

use sea_orm::ActiveEnum;
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
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

/// A rule of a document.
#[derive(Debug)]
pub(super) struct Entry {
    pub id: Option<Uuid>,
    /// Its bounds are not checked yet.
    pub rule: pb::AlertRule,
}

/// Reads a document.
pub(super) fn read(document: &str) -> Result<Vec<Entry>> {
    if document.is_empty() {
        return Err(Error::invalid("document", "is required"));
    }
    if document.len() > MAX_BYTES {
        let problem = format!("must have at most {MAX_BYTES} bytes");
        return Err(Error::invalid("document", problem));
    }
    let Tree(tree) = serde_json::from_str(document)
        .map_err(|error| Error::invalid("document", format!("cannot be read: {error}")))?;
    let mut fields = Fields::of(String::new(), "document", tree)?;
    if fields.text("format")?.as_deref() != Some(FORMAT) {
        return Err(Error::invalid("format", format!("must be `{FORMAT}`")));
    }
    if fields.take("version") != Some(VERSION.into()) {
        let problem = format!("must be {VERSION}, which is what this server knows");
        return Err(Error::invalid("version", problem));
    }
    let rules = fields.list("alert_rules")?;
    fields.end()?;
    let rules = rules.ok_or_else(|| Error::invalid("alert_rules", "is required"))?;
    if rules.len() > MAX_RULES {
        let problem = format!("must have at most {MAX_RULES} entries");
        return Err(Error::invalid("alert_rules", problem));
    }
    let mut places = HashMap::with_capacity(rules.len());
    let mut entries = Vec::with_capacity(rules.len());
    for (at, rule) in rules.into_iter().enumerate() {
        let entry = entry(&format!("alert_rules[{at}]"), rule)?;
        if let Some(id) = entry.id
            && let Some(first) = places.insert(id, at)
        {
            let problem = format!("is that of alert_rules[{first}] as well");
            return Err(Error::invalid(format!("alert_rules[{at}].id"), problem));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(path: &str, rule: Value) -> Result<Entry> {
    let mut fields = Fields::of(format!("{path}."), path, rule)?;
    let id = fields.text("id")?;
    let id = id.map(|id| check::uuid(&format!("{path}.id"), &id));
    let severity = match fields.text("severity")? {
        Some(label) => pb::Severity::from(severity(path, &label)?),
        None => pb::Severity::Unspecified,
    };
    let rule = pb::AlertRule {
        name: fields.text("name")?.unwrap_or_default(),
        description: fields.text("description")?,
        enabled: fields.boolean("enabled")?,
        severity: severity.into(),
        risk_threshold: fields.whole("risk_threshold")?,
        object_types: fields.texts("object_types")?,
        camera_ids: fields.texts("camera_ids")?,
        zone_ids: fields.texts("zone_ids")?,
        min_confidence: fields.number("min_confidence")?,
        schedule: fields
            .take("schedule")
            .map(|it| read_schedule(path, it))
            .transpose()?,
        conditions: match fields.take("conditions") {
            Some(conditions) => Some(json::whole_to_proto(conditions).ok_or_else(|| {
                Error::invalid(format!("{path}.conditions"), "must be an object")
            })?),
            None => None,
        },
        dedup_key_template: fields.text("dedup_key_template")?,
        cooldown_seconds: fields.whole("cooldown_seconds")?,
        channels: fields.texts("channels")?,
        flap_threshold: fields.whole("flap_threshold")?,
        flap_window_seconds: fields.whole("flap_window_seconds")?,
        escalation: read_escalation(path, &mut fields)?,
        ..Default::default()
    };
    for output_only in ["created_at", "updated_at", "version_id"] {
        fields.take(output_only);
    }
    fields.end()?;
    Ok(Entry {
        id: id.transpose()?,
        rule,
    })
}

fn severity(path: &str, label: &str) -> Result<AlertSeverity> {
    AlertSeverity::try_from_value(&label.to_string()).map_err(|_| {
        Error::invalid(
            format!("{path}.severity"),
            "must be low, medium, high or critical",
        )
    })
}

fn read_escalation(rule: &str, fields: &mut Fields) -> Result<Vec<pb::EscalationStep>> {
    let steps = fields.list("escalation")?.unwrap_or_default();
    let step = |(at, step)| {
        let path = format!("{rule}.escalation[{at}]");
        let mut fields = Fields::of(format!("{path}."), &path, step)?;
        let step = pb::EscalationStep {
            after_seconds: fields.whole("after_seconds")?.unwrap_or_default(),
            channels: fields.texts("channels")?,
        };
        fields.end()?;
        Ok(step)
    };
    steps.into_iter().enumerate().map(step).collect()
}

fn read_schedule(rule: &str, schedule: Value) -> Result<pb::Schedule> {
    let path = format!("{rule}.schedule");
    let mut fields = Fields::of(format!("{path}."), &path, schedule)?;
    let mut days = Vec::new();
    for (at, day) in fields.texts("days")?.into_iter().enumerate() {
        let day = serde_json::from_value::<Weekday>(day.into()).map_err(|_| {
            Error::invalid(
                format!("{path}.days[{at}]"),
                "must be a day, monday to sunday",
            )
        })?;
        days.push(day);
    }
    let read = alert_rule::Schedule {
        days,
        start_time: fields.text("start_time")?,
        end_time: fields.text("end_time")?,
        timezone: fields.text("timezone")?.unwrap_or_default(),
    };
    fields.end()?;
    Ok(schedule::to_proto(read))
}

/// The keys of an object that are not read yet. Null is as if it were left out.
struct Fields {
    /// What comes before the name of a key in its path.
    prefix: String,
    left: Map<String, Value>,
}

impl Fields {
    fn of(prefix: String, name: &str, value: Value) -> Result<Self> {
        match value {
            Value::Object(left) => Ok(Self { prefix, left }),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => Err(Error::invalid(name, "must be an object")),
        }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key).filter(|value| !value.is_null())
    }

    fn invalid(&self, key: &str, problem: &str) -> Error {
        Error::invalid(format!("{}{key}", self.prefix), problem)
    }

    fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.invalid(key, "must be a text")),
        }
    }

    fn boolean(&mut self, key: &str) -> Result<Option<bool>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.invalid(key, "must be true or false")),
        }
    }

    fn whole(&mut self, key: &str) -> Result<Option<i32>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let whole = value.as_i64().and_then(|number| number.try_into().ok());
        match whole {
            Some(number) => Ok(Some(number)),
            None => Err(self.invalid(key, "must be a whole number")),
        }
    }

    fn number(&mut self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(self.invalid(key, "must be a number")),
        }
    }

    fn list(&mut self, key: &str) -> Result<Option<Vec<Value>>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(_) => Err(self.invalid(key, "must be a list")),
        }
    }

    fn texts(&mut self, key: &str) -> Result<Vec<String>> {
        let values = self.list(key)?.unwrap_or_default();
        let text = |(at, value)| match value {
            Value::String(text) => Ok(text),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => Err(self.invalid(&format!("{key}[{at}]"), "must be a text")),
        };
        values.into_iter().enumerate().map(text).collect()
    }

    /// Refuses what nobody has asked for.
    fn end(self) -> Result<()> {
        match self.left.keys().next() {
            Some(key) => Err(self.invalid(key, "is not known")),
            None => Ok(()),
        }
    }
}

/// JSON in which no object has a key twice.
struct Tree(Value);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor).map(Self)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Tree(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(de::Error::custom(format_args!("`{key}` is there twice")));
            }
            let Tree(value) = object.next_value()?;
            fields.insert(key, value);
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
mod tests;
