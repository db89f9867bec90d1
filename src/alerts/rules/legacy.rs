//! Translation of the legacy `conditions` object into the fields of a rule.

use prost_types::{Struct, Value, value::Kind};

use crate::{
    error::{Error, Result},
    pb,
};

const FIELD: &str = "alert_rule.conditions";

/// Moves the legacy conditions of a rule into fields. Fails for an unknown condition, and for a
/// condition whose field is set as well.
pub fn translate(mut rule: pb::AlertRule) -> Result<pb::AlertRule> {
    let Some(conditions) = rule.conditions.take() else {
        return Ok(rule);
    };
    for (key, value) in conditions.fields {
        let field = format!("{FIELD}.{key}");
        let target = match key.as_str() {
            "time_ranges" => "schedule",
            key => key,
        };
        let is_set = match key.as_str() {
            "risk_threshold" => rule.risk_threshold.is_some(),
            "object_types" => !rule.object_types.is_empty(),
            "camera_ids" => !rule.camera_ids.is_empty(),
            "min_confidence" => rule.min_confidence.is_some(),
            "time_ranges" => rule.schedule.is_some(),
            _ => {
                return Err(Error::invalid(field, "is not a condition that this server knows"));
            }
        };
        if is_set {
            return Err(Error::invalid(field, format!("contradicts `alert_rule.{target}`, which is set as well")));
        }
        match key.as_str() {
            "risk_threshold" => rule.risk_threshold = Some(whole(&field, &value)?),
            "min_confidence" => rule.min_confidence = Some(number(&field, &value)?),
            "object_types" => rule.object_types = texts(&field, value)?,
            "camera_ids" => rule.camera_ids = texts(&field, value)?,
            _ => rule.schedule = time_range(&field, value)?,
        }
    }
    Ok(rule)
}

fn number(field: &str, value: &Value) -> Result<f64> {
    match value.kind {
        Some(Kind::NumberValue(number)) => Ok(number),
        _ => Err(Error::invalid(field, "must be a number")),
    }
}

fn whole(field: &str, value: &Value) -> Result<i32> {
    let number = number(field, value)?;
    #[expect(clippy::cast_possible_truncation, reason = "whole and in range")]
    let whole = (number.fract() == 0.0 && number.abs() < f64::from(i32::MAX)).then_some(number as i32);
    whole.ok_or_else(|| Error::invalid(field, "must be a whole number"))
}

fn list(field: &str, value: Value) -> Result<Vec<Value>> {
    match value.kind {
        Some(Kind::ListValue(list)) => Ok(list.values),
        _ => Err(Error::invalid(field, "must be a list")),
    }
}

fn text(field: impl FnOnce() -> String, value: Option<Value>) -> Result<String> {
    match value.and_then(|value| value.kind) {
        Some(Kind::StringValue(text)) => Ok(text),
        _ => Err(Error::invalid(field(), "must be a text")),
    }
}

fn texts(field: &str, value: Value) -> Result<Vec<String>> {
    let entry = |(index, value)| text(|| format!("{field}[{index}]"), Some(value));
    list(field, value)?.into_iter().enumerate().map(entry).collect()
}

fn time_range(field: &str, value: Value) -> Result<Option<pb::Schedule>> {
    let ranges = list(field, value)?;
    let Ok([range]) = <[Value; 1]>::try_from(ranges) else {
        return Err(Error::invalid(field, "must be a list of one {start, end}"));
    };
    let Some(Kind::StructValue(Struct { mut fields })) = range.kind else {
        return Err(Error::invalid(format!("{field}[0]"), "must be an object"));
    };
    let start_time = text(|| format!("{field}[0].start"), fields.remove("start"))?;
    let end_time = text(|| format!("{field}[0].end"), fields.remove("end"))?;
    match fields.into_keys().next() {
        Some(key) => Err(Error::invalid(format!("{field}[0].{key}"), "is not known")),
        None => Ok(Some(pb::Schedule { start_time, end_time, ..Default::default() })),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(conditions: serde_json::Value) -> pb::AlertRule {
        pb::AlertRule { conditions: crate::rpc::json::to_proto(conditions), ..Default::default() }
    }

    #[test]
    fn old_conditions_take_the_place_of_new_ones() {
        let conditions = json!({
            "risk_threshold": 70, "object_types": ["person"], "camera_ids": ["door"], "min_confidence": 0.5,
            "time_ranges": [{"start": "22:00", "end": "06:00"}]
        });
        let rule = translate(rule(conditions)).unwrap();
        let schedule = rule.schedule.unwrap();
        assert_eq!((rule.risk_threshold, rule.min_confidence, rule.conditions), (Some(70), Some(0.5), None));
        assert_eq!((rule.object_types, rule.camera_ids), (vec!["person".to_string()], vec!["door".to_string()]));
        assert_eq!((schedule.start_time.as_str(), schedule.end_time.as_str()), ("22:00", "06:00"));
    }

    #[test]
    fn nothing_is_ignored() {
        for conditions in [
            json!({"nope": 1}),
            json!({"risk_threshold": "70"}),
            json!({"risk_threshold": 70.5}),
            json!({"object_types": "person"}),
            json!({"object_types": [1]}),
            json!({"time_ranges": []}),
            json!({"time_ranges": [{"start": "1", "end": "2"}, {"start": "3", "end": "4"}]}),
            json!({"time_ranges": [{"start": "22:00"}]}),
            json!({"time_ranges": [{"start": "22:00", "end": "06:00", "days": []}]}),
        ] {
            assert!(translate(rule(conditions.clone())).is_err(), "{conditions}");
        }
        let both = pb::AlertRule { risk_threshold: Some(1), ..rule(json!({"risk_threshold": 2})) };
        assert!(translate(both).is_err());
    }
}
