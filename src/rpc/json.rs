//! Free-form JSON: `serde_json` here, `google.protobuf.Struct` on the wire.

use prost_types::{ListValue, Struct, Value, value::Kind};
use serde_json::{Map, Number, Value as Json};

use crate::error::{Error, Result};

/// Whole numbers up to here are the same as doubles.
const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53

/// A JSON object from the wire. Numbers that JSON does not have and NUL characters are refused.
pub fn from_proto(field: &str, object: Struct) -> Result<Json> {
    let entry = |(key, value): (String, Value)| {
        let field = format!("{field}.{key}");
        let value = value_from_proto(&field, value)?;
        Ok((clean(&field, key)?, value))
    };
    Ok(Json::Object(
        object
            .fields
            .into_iter()
            .map(entry)
            .collect::<Result<Map<_, _>>>()?,
    ))
}

fn value_from_proto(field: &str, value: Value) -> Result<Json> {
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::Bool(value),
        Some(Kind::NumberValue(value)) => Json::Number(number(field, value)?),
        Some(Kind::StringValue(value)) => Json::String(clean(field, value)?),
        Some(Kind::StructValue(value)) => from_proto(field, value)?,
        Some(Kind::ListValue(list)) => {
            let entry = |(at, value)| value_from_proto(&format!("{field}[{at}]"), value);
            Json::Array(
                list.values
                    .into_iter()
                    .enumerate()
                    .map(entry)
                    .collect::<Result<_>>()?,
            )
        }
    })
}

/// `3` rather than `3.0` where nothing is lost by it.
fn number(field: &str, value: f64) -> Result<Number> {
    #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
    let whole = (value.fract() == 0.0 && value.abs() < EXACT).then_some(value as i64);
    whole
        .map(Number::from)
        .or_else(|| Number::from_f64(value))
        .ok_or_else(|| Error::invalid(field, "must be a finite number"))
}

fn clean(field: &str, text: String) -> Result<String> {
    if text.contains('\0') {
        return Err(Error::invalid(field, "must not contain a NUL character"));
    }
    Ok(text)
}

/// A JSON object for the wire. `None` for anything that is not an object.
pub fn to_proto(json: Json) -> Option<Struct> {
    match json {
        Json::Object(object) => Some(Struct {
            fields: object
                .into_iter()
                .map(|(key, value)| (key, value_to_proto(value)))
                .collect(),
        }),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => None,
    }
}

fn value_to_proto(json: Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        // Every number of serde_json can be read as a double.
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(values) => Kind::ListValue(ListValue {
            values: values.into_iter().map(value_to_proto).collect(),
        }),
        Json::Object(object) => Kind::StructValue(Struct {
            fields: object
                .into_iter()
                .map(|(key, value)| (key, value_to_proto(value)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_survives_the_wire() {
        let json = serde_json::json!({"a": 1, "b": [null, true, "x", {"c": 1.5}], "d": {}});
        assert_eq!(
            from_proto("f", to_proto(json.clone()).unwrap()).unwrap(),
            json
        );
    }

    #[test]
    fn what_json_cannot_hold_is_refused_by_path() {
        let value = |kind| Value { kind: Some(kind) };
        let list = ListValue {
            values: vec![value(Kind::NumberValue(f64::NAN))],
        };
        let fields = [("a".to_string(), value(Kind::ListValue(list)))].into();
        let error = from_proto("f", Struct { fields }).unwrap_err();
        assert_eq!(error.to_string(), "`f.a[0]` must be a finite number");
    }
}
