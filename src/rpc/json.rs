//! Free-form JSON: `serde_json` in the server, `google.protobuf.Struct` in the API.
//!
//! Protobuf messages nest a limited number of levels, 100 in most implementations, and a level of
//! JSON takes up to three. Objects are therefore bounded in depth and size, on input and on output.

use std::fmt;

use prost::Message;
use prost_types::{ListValue, Struct, Value, value::Kind};
use serde_json::{Map, Number, Value as Json};

use crate::error::{Error, Result};

#[cfg(test)]
mod tests;

/// Maximum nesting of objects and lists, including the outermost object.
pub const MAX_LEVELS: usize = 20;

/// Maximum size of an accepted object, in bytes of JSON.
pub const MAX_BYTES: usize = 1 << 20;

/// Key of the object that replaces an undeliverable object.
pub const OMITTED_KEY: &str = "watchpost.omitted";

/// Integers below this limit are exact as doubles.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0; // 2^53

/// Maximum encoded size of an object with at most `max_bytes` of JSON. Numbers are larger encoded
/// than as text.
const fn max_encoded_len(max_bytes: usize) -> usize {
    max_bytes + max_bytes / 4
}

/// Converts an object of at most `max_bytes` of JSON from the API. All bounds are checked before
/// the conversion.
///
/// Numbers outside of JSON and NUL characters are refused.
pub fn from_proto(field: &str, object: Struct, max_bytes: usize) -> Result<Json> {
    let encoded = max_encoded_len(max_bytes);
    if object.encoded_len() > encoded {
        let problem = format!("must have at most {encoded} bytes as an encoded message");
        return Err(Error::invalid(field, problem));
    }
    let mut budget = ByteBudget { field, max_bytes, bytes: max_bytes };
    budget.take_object(&object, &Path::root(field), 1)?;
    Ok(object_from_proto(object))
}

/// Remaining bytes of JSON.
struct ByteBudget<'a> {
    field: &'a str,
    max_bytes: usize,
    bytes: usize,
}

impl ByteBudget<'_> {
    fn take(&mut self, bytes: usize) -> Result<()> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(|| {
            let problem = format!("must have at most {} bytes as JSON", self.max_bytes);
            Error::invalid(self.field, problem)
        })?;
        Ok(())
    }

    fn take_object(&mut self, object: &Struct, path: &Path<'_>, level: usize) -> Result<()> {
        check_level(path, level)?;
        // The braces, and a comma after every entry except the last.
        self.take(2 + object.fields.len().saturating_sub(1))?;
        for (key, value) in &object.fields {
            let path = path.child(Step::Key(key));
            self.take_text(key, &path)?;
            self.take(1)?;
            self.take_value(value, &path, level + 1)?;
        }
        Ok(())
    }

    fn take_value(&mut self, value: &Value, path: &Path<'_>, level: usize) -> Result<()> {
        match &value.kind {
            None | Some(Kind::NullValue(_) | Kind::BoolValue(true)) => self.take(4),
            Some(Kind::BoolValue(false)) => self.take(5),
            Some(Kind::NumberValue(value)) => {
                let number =
                    number(*value).ok_or_else(|| Error::invalid(path.to_string(), "must be a finite number"))?;
                self.take(number.to_string().len())
            }
            Some(Kind::StringValue(text)) => self.take_text(text, path),
            Some(Kind::StructValue(object)) => self.take_object(object, path, level),
            Some(Kind::ListValue(list)) => {
                check_level(path, level)?;
                self.take(2 + list.values.len().saturating_sub(1))?;
                for (index, value) in list.values.iter().enumerate() {
                    self.take_value(value, &path.child(Step::Index(index)), level + 1)?;
                }
                Ok(())
            }
        }
    }

    fn take_text(&mut self, text: &str, path: &Path<'_>) -> Result<()> {
        // The length is checked before the characters are inspected.
        self.take(2 + text.len())?;
        let mut escapes = 0;
        for byte in text.bytes() {
            escapes += match byte {
                0 => {
                    let problem = "must not contain a NUL character";
                    return Err(Error::invalid(path.to_string(), problem));
                }
                b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 1,
                0x01..0x20 => 5,
                _ => 0,
            };
        }
        self.take(escapes)
    }
}

fn check_level(path: &Path<'_>, level: usize) -> Result<()> {
    if level <= MAX_LEVELS {
        return Ok(());
    }
    let problem = format!("must not be nested deeper than {MAX_LEVELS} levels");
    Err(Error::invalid(path.to_string(), problem))
}

/// Path of a value: a linked list on the stack, formatted only for an error.
struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    fn root(field: &'a str) -> Self {
        Self { parent: None, step: Step::Key(field) }
    }

    fn child<'b>(&'b self, step: Step<'b>) -> Path<'b> {
        Path { parent: Some(self), step }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match (self.step, self.parent.is_some()) {
            (Step::Key(key), true) => write!(f, ".{key}"),
            (Step::Key(key), false) => f.write_str(key),
            (Step::Index(index), _) => write!(f, "[{index}]"),
        }
    }
}

fn object_from_proto(object: Struct) -> Json {
    let entries = object.fields.into_iter().map(|(key, value)| (key, value_from_proto(value)));
    Json::Object(entries.collect::<Map<_, _>>())
}

fn value_from_proto(value: Value) -> Json {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::Bool(value),
        Some(Kind::NumberValue(value)) => number(value).map_or(Json::Null, Json::Number),
        Some(Kind::StringValue(value)) => Json::String(value),
        Some(Kind::StructValue(value)) => object_from_proto(value),
        Some(Kind::ListValue(list)) => Json::Array(list.values.into_iter().map(value_from_proto).collect()),
    }
}

/// Converts a number, as an integer if no precision is lost. `None` for a number that is not
/// finite.
fn number(value: f64) -> Option<Number> {
    #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
    let whole = (value.fract() == 0.0 && value.abs() < MAX_EXACT).then_some(value as i64);
    whole.map(Number::from).or_else(|| Number::from_f64(value))
}

/// Converts a stored object for the API. `None` for a value that is not an object.
///
/// An object too deep or too large for a message, stored by an older version or another writer, is
/// replaced. The replacement has the single key [`OMITTED_KEY`] with the reason as its value.
pub fn to_proto(json: Json) -> Option<Struct> {
    if !json.is_object() {
        return None;
    }
    match delivery_problem(&json) {
        None => to_proto_unbounded(json),
        Some(problem) => Some(Struct { fields: [(OMITTED_KEY.to_string(), value(Kind::StringValue(problem)))].into() }),
    }
}

/// Returns the reason if an object cannot be delivered in a message.
pub fn delivery_problem(json: &Json) -> Option<String> {
    if exceeds_depth(json, MAX_LEVELS) {
        return Some(format!("nested deeper than {MAX_LEVELS} levels"));
    }
    let (encoded, max_bytes) = (encoded_len(json), max_encoded_len(MAX_BYTES));
    (encoded > max_bytes).then(|| format!("{encoded} bytes encoded, more than {max_bytes}"))
}

/// Returns true if a value has more than `levels` nested objects and lists.
fn exceeds_depth(json: &Json, levels: usize) -> bool {
    // Stored values can be deep, so the search stops one level beyond the limit.
    match json {
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => false,
        Json::Array(_) | Json::Object(_) if levels == 0 => true,
        Json::Array(values) => values.iter().any(|value| exceeds_depth(value, levels - 1)),
        Json::Object(object) => object.values().any(|value| exceeds_depth(value, levels - 1)),
    }
}

/// Estimates the encoded length of a value, to within a few bytes per value.
pub fn encoded_len(json: &Json) -> usize {
    /// A tag and a length of two bytes.
    const PREFIX: usize = 3;
    match json {
        Json::Null | Json::Bool(_) => 2,
        Json::Number(_) => 9,
        Json::String(text) => PREFIX + text.len(),
        Json::Array(values) => {
            let values = values.iter().map(|value| PREFIX + encoded_len(value));
            PREFIX + values.sum::<usize>()
        }
        Json::Object(object) => {
            let entry = |(key, value): (&String, &Json)| 3 * PREFIX + key.len() + encoded_len(value);
            PREFIX + object.iter().map(entry).sum::<usize>()
        }
    }
}

/// Converts an object for the API without bounds. `None` for a value that is not an object.
pub fn to_proto_unbounded(json: Json) -> Option<Struct> {
    if let Some(Kind::StructValue(object)) = value_to_proto(json).kind {
        return Some(object);
    }
    None
}

fn value_to_proto(json: Json) -> Value {
    value(match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        // Every `serde_json` number can be read as a double.
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(values) => Kind::ListValue(ListValue { values: values.into_iter().map(value_to_proto).collect() }),
        Json::Object(object) => Kind::StructValue(Struct {
            fields: object.into_iter().map(|(key, value)| (key, value_to_proto(value))).collect(),
        }),
    })
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}
