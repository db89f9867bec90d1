//! Text form of PostgreSQL arrays, because the driver's arrays cannot hold NULL.

use std::fmt::Write;

use chrono::{DateTime, Datelike, Timelike, Utc};
use sea_orm::{ColumnTrait, ColumnType, Value};

use crate::error::{Error, Result};

/// Returns the PostgreSQL type name of a column.
pub(super) fn type_name(column: impl ColumnTrait) -> Result<String> {
    let definition = column.def();
    let column_type = definition.get_column_type();
    if let ColumnType::Enum { name, .. } = column_type {
        return Ok(name.to_string());
    }
    let known = [
        (matches!(column_type, ColumnType::BigInteger), "bigint"),
        (matches!(column_type, ColumnType::Integer), "integer"),
        (matches!(column_type, ColumnType::Double), "double precision"),
        (matches!(column_type, ColumnType::Boolean), "boolean"),
        (matches!(column_type, ColumnType::String(_) | ColumnType::Text), "text"),
        (matches!(column_type, ColumnType::TimestampWithTimeZone), "timestamptz"),
        (matches!(column_type, ColumnType::Uuid), "uuid"),
        (matches!(column_type, ColumnType::Json), "json"),
        (matches!(column_type, ColumnType::JsonBinary), "jsonb"),
        (matches!(column_type, ColumnType::VarBinary(_) | ColumnType::Blob), "bytea"),
    ];
    let name = known.into_iter().find(|(matches, _)| *matches).map(|(_, name)| name.to_string());
    name.ok_or_else(|| Error::internal(format!("columns of type {column_type:?} cannot be passed as arrays")))
}

/// Appends an element to the text form of an array.
pub(super) fn push_element(array: &mut String, value: Option<Value>) -> Result<()> {
    // Writing to a string cannot fail.
    let written = match value {
        None => return Err(Error::internal("a row leaves out a column")),
        Some(Value::Bool(Some(value))) => write!(array, "{value}"),
        Some(Value::Int(Some(value))) => write!(array, "{value}"),
        Some(Value::BigInt(Some(value))) => write!(array, "{value}"),
        Some(Value::Double(Some(value))) => write!(array, "{value:?}"),
        Some(Value::Uuid(Some(value))) => write!(array, "{value}"),
        Some(Value::ChronoDateTimeUtc(Some(value))) => {
            push_time(array, value);
            Ok(())
        }
        Some(Value::String(Some(value))) => {
            push_quoted(array, &value);
            Ok(())
        }
        Some(Value::Json(Some(value))) => {
            push_quoted(array, &value.to_string());
            Ok(())
        }
        Some(Value::Bytes(Some(value))) => {
            push_bytes(array, &value);
            Ok(())
        }
        Some(value) if value == value.as_null() => write!(array, "NULL"),
        Some(value) => {
            return Err(Error::internal(format!("the value {value:?} has no text form in arrays")));
        }
    };
    written.map_err(Error::internal)
}

/// Appends bytes in hexadecimal: `"\\x00ff"`.
fn push_bytes(array: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    array.reserve(2 * bytes.len() + 5);
    array.push_str("\"\\\\x");
    for byte in bytes {
        array.push(char::from(DIGITS[usize::from(byte >> 4)]));
        array.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    array.push('"');
}

/// Appends a time: `"2026-03-01 12:00:00.123456+00"`. Pattern formatting by chrono is several times
/// slower.
fn push_time(array: &mut String, time: DateTime<Utc>) {
    let year = u32::try_from(time.year()).unwrap_or_default();
    array.push('"');
    for (number, digits, separator) in [
        (year, 4, "-"),
        (time.month(), 2, "-"),
        (time.day(), 2, " "),
        (time.hour(), 2, ":"),
        (time.minute(), 2, ":"),
        (time.second(), 2, "."),
        (time.timestamp_subsec_micros().min(999_999), 6, "+00\""),
    ] {
        let mut divisor = 10_u32.pow(digits - 1);
        while divisor > 0 {
            let digit = u8::try_from(number / divisor % 10).unwrap_or_default();
            array.push(char::from(b'0' + digit));
            divisor /= 10;
        }
        array.push_str(separator);
    }
}

fn push_quoted(array: &mut String, text: &str) {
    array.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            array.push('\\');
        }
        array.push(c);
    }
    array.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_written_as_postgres_reads_them() {
        let text = |value: Value| {
            let mut array = String::new();
            push_element(&mut array, Some(value)).unwrap();
            array
        };
        assert_eq!(text(r#"a "b" \ {c},NULL"#.into()), r#""a \"b\" \\ {c},NULL""#);
        assert_eq!(text("".into()), r#""""#);
        assert_eq!(text(Value::String(None)), "NULL");
        assert_eq!(text(Value::BigInt(None)), "NULL");
        assert_eq!(text(0.1_f64.into()), "0.1");
        assert_eq!(text(1e300_f64.into()), "1e300");
        for micros in [0, 1, 1_772_366_400_123_456, 253_402_300_799_999_999] {
            let time = DateTime::from_timestamp_micros(micros).unwrap();
            let expected = time.format("\"%Y-%m-%d %H:%M:%S%.6f+00\"").to_string();
            assert_eq!(text(time.into()), expected);
        }
        assert_eq!(text(vec![0_u8, 255].into()), r#""\\x00ff""#);
        assert_eq!(text(serde_json::json!({"a": "\"\\"}).into()), r#""{\"a\":\"\\\"\\\\\"}""#);
    }
}
