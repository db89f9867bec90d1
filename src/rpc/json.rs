//! Free-form JSON: `serde_json` here, `google.protobuf.Struct` on the wire.
//!
//! A message nests a limited number of levels (100 in most implementations), of which each level of JSON takes up to
//! three. Objects are therefore bounded in depth as well as in size, on input and on output.

use std::fmt;

use prost::Message;
use prost_types::{ListValue, Struct, Value, value::Kind};
use serde_json::{Map, Number, Value as Json};

use crate::error::{Error, Result};

#[cfg(test)]
mod tests;

/// Levels of objects and lists inside of each other, the outermost object included.
pub const LEVELS: usize = 20;

/// Largest object that is accepted, in bytes of JSON.
pub const LARGEST: usize = 1 << 20;

/// Key of the object that stands for one that cannot be delivered.
pub const OMITTED: &str = "watchpost.omitted";

/// Whole numbers up to here are the same as doubles.
const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53

/// Largest encoded size of an object of at most `most` bytes of JSON. Numbers take more room encoded than as text.
const fn largest_encoded(most: usize) -> usize {
    most + most / 4
}

/// A JSON object from the wire of at most `most` bytes of JSON. All bounds are checked before anything is converted.
///
/// Numbers that JSON does not have and NUL characters are refused.
pub fn from_proto(field: &str, object: Struct, most: usize) -> Result<Json> {
    let encoded = largest_encoded(most);
    if object.encoded_len() > encoded {
        let problem = format!("must have at most {encoded} bytes as an encoded message");
        return Err(Error::invalid(field, problem));
    }
    let mut left = Left {
        field,
        most,
        bytes: most,
    };
    left.take_object(&object, &Path::root(field), 1)?;
    Ok(object_from_proto(object))
}

/// The bytes of JSON that an object may still have.
struct Left<'a> {
    field: &'a str,
    most: usize,
    bytes: usize,
}

impl Left<'_> {
    fn take(&mut self, bytes: usize) -> Result<()> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(|| {
            let problem = format!("must have at most {} bytes as JSON", self.most);
            Error::invalid(self.field, problem)
        })?;
        Ok(())
    }

    fn take_object(&mut self, object: &Struct, path: &Path<'_>, level: usize) -> Result<()> {
        check_level(path, level)?;
        // The braces, and a comma after every entry but the last.
        self.take(2 + object.fields.len().saturating_sub(1))?;
        for (key, value) in &object.fields {
            let path = path.step(Step::Key(key));
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
                let number = number(*value)
                    .ok_or_else(|| Error::invalid(path.to_string(), "must be a finite number"))?;
                self.take(number.to_string().len())
            }
            Some(Kind::StringValue(text)) => self.take_text(text, path),
            Some(Kind::StructValue(object)) => self.take_object(object, path, level),
            Some(Kind::ListValue(list)) => {
                check_level(path, level)?;
                self.take(2 + list.values.len().saturating_sub(1))?;
                for (at, value) in list.values.iter().enumerate() {
                    self.take_value(value, &path.step(Step::Index(at)), level + 1)?;
                }
                Ok(())
            }
        }
    }

    fn take_text(&mut self, text: &str, path: &Path<'_>) -> Result<()> {
        // The length is checked before the characters are looked at.
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
    if level <= LEVELS {
        return Ok(());
    }
    let problem = format!("must not be nested deeper than {LEVELS} levels");
    Err(Error::invalid(path.to_string(), problem))
}

/// The place of a value: a list on the stack, from which a text is only made for an error.
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
        Self {
            parent: None,
            step: Step::Key(field),
        }
    }

    fn step<'b>(&'b self, step: Step<'b>) -> Path<'b> {
        Path {
            parent: Some(self),
            step,
        }
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
            (Step::Index(at), _) => write!(f, "[{at}]"),
        }
    }
}

fn object_from_proto(object: Struct) -> Json {
    let entries = object.fields.into_iter();
    let entries = entries.map(|(key, value)| (key, value_from_proto(value)));
    Json::Object(entries.collect::<Map<_, _>>())
}

fn value_from_proto(value: Value) -> Json {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::Bool(value),
        Some(Kind::NumberValue(value)) => number(value).map_or(Json::Null, Json::Number),
        Some(Kind::StringValue(value)) => Json::String(value),
        Some(Kind::StructValue(value)) => object_from_proto(value),
        Some(Kind::ListValue(list)) => {
            Json::Array(list.values.into_iter().map(value_from_proto).collect())
        }
    }
}

/// `3` rather than `3.0` where nothing is lost by it. `None` for what is not finite.
fn number(value: f64) -> Option<Number> {
    #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
    let whole = (value.fract() == 0.0 && value.abs() < EXACT).then_some(value as i64);
    whole.map(Number::from).or_else(|| Number::from_f64(value))
}

/// A stored JSON object for the wire. `None` for anything that is not an object.
///
/// An object that is too deep or too large to be delivered, which an older version or another writer has stored, is
/// replaced by one with the single key [`OMITTED`], whose value says why.
pub fn to_proto(json: Json) -> Option<Struct> {
    if !json.is_object() {
        return None;
    }
    match undeliverable(&json) {
        None => whole_to_proto(json),
        Some(problem) => Some(Struct {
            fields: [(OMITTED.to_string(), value(Kind::StringValue(problem)))].into(),
        }),
    }
}

/// The reason why an object cannot be delivered in a message, if it cannot.
pub fn undeliverable(json: &Json) -> Option<String> {
    if is_deeper(json, LEVELS) {
        return Some(format!("nested deeper than {LEVELS} levels"));
    }
    let (encoded, most) = (encoded_len(json), largest_encoded(LARGEST));
    (encoded > most).then(|| format!("{encoded} bytes encoded, more than {most}"))
}

/// Whether a value has more than `levels` of objects and lists inside of each other.
fn is_deeper(json: &Json, levels: usize) -> bool {
    // Stored values can be deep, so that no more than one level too many is looked at.
    match json {
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => false,
        Json::Array(_) | Json::Object(_) if levels == 0 => true,
        Json::Array(values) => values.iter().any(|value| is_deeper(value, levels - 1)),
        Json::Object(object) => object.values().any(|value| is_deeper(value, levels - 1)),
    }
}

/// The length of the `Value` or `Struct` that a value becomes, to within a few bytes for each value.
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
            let entry =
                |(key, value): (&String, &Json)| 3 * PREFIX + key.len() + encoded_len(value);
            PREFIX + object.iter().map(entry).sum::<usize>()
        }
    }
}

/// A JSON object for the wire, whatever its depth and size. `None` for anything that is not an object.
pub fn whole_to_proto(json: Json) -> Option<Struct> {
    if let Some(Kind::StructValue(object)) = value_to_proto(json).kind {
        return Some(object);
    }
    None
}

fn value_to_proto(json: Json) -> Value {
    value(match json {
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
    })
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}
