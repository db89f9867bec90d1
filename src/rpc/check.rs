//! Checks of client input, with errors that name the field, before the database would refuse the
//! value.

use std::{
    fmt::{Debug, Display},
    net::SocketAddr,
    ops::{Add, RangeInclusive},
};

use uuid::Uuid;

use crate::error::{Error, Result};

/// Checks that a text has a length in characters within `length`, and no NUL, which PostgreSQL
/// cannot store.
pub fn text(field: &str, value: &str, length: RangeInclusive<usize>) -> Result<String> {
    if value.is_empty() && *length.start() > 0 {
        return Err(Error::invalid(field, "is required"));
    }
    if value.contains('\0') {
        return Err(Error::invalid(field, "must not contain a NUL character"));
    }
    // Counting characters is only needed if the number of bytes exceeds the limit.
    if value.len() > *length.end() && value.chars().count() > *length.end() {
        return Err(Error::invalid(field, format!("must have at most {} characters", length.end())));
    }
    Ok(value.to_string())
}

/// Checks a name: a text that is not blank.
pub fn name(field: &str, value: &str, length: RangeInclusive<usize>) -> Result<String> {
    if !value.is_empty() && value.trim().is_empty() {
        return Err(Error::invalid(field, "must not be blank"));
    }
    text(field, value, length)
}

/// Checks an optional text; see [`text`].
pub fn optional_text(field: &str, value: Option<&str>, length: RangeInclusive<usize>) -> Result<Option<String>> {
    value.map(|value| text(field, value, length)).transpose()
}

/// Checks a list of at most `max_entries` names; see [`name`].
pub fn texts(
    field: &str,
    values: &[String],
    max_entries: usize,
    length: &RangeInclusive<usize>,
) -> Result<Vec<String>> {
    if values.len() > max_entries {
        return Err(Error::invalid(field, format!("must have at most {max_entries} entries")));
    }
    let entry = |(index, value): (usize, &String)| name(&format!("{field}[{index}]"), value, length.clone());
    values.iter().enumerate().map(entry).collect()
}

/// Checks an actor of at most 100 characters. An empty actor is replaced by the client's address.
pub fn actor(field: &str, value: &str, peer: Option<SocketAddr>) -> Result<String> {
    let actor = name(field, value, 0..=100)?;
    if !actor.is_empty() {
        return Ok(actor);
    }
    Ok(peer.map_or("unknown".into(), |peer| format!("ip:{}", peer.ip().to_canonical())))
}

/// Checks that a number is in `range`. Negative zero becomes zero, because PostgreSQL keeps the
/// sign and SQLite does not.
pub fn within<T: PartialOrd + Debug + Display + Default + Add<Output = T>>(
    field: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T> {
    if range.contains(&value) {
        return Ok(value + T::default());
    }
    // NaN is in no range, and is refused here as well.
    Err(Error::invalid(field, format!("must be in [{}, {}], got {value}", range.start(), range.end())))
}

/// Checks that a number is finite and not below `min`. Negative zero becomes zero.
pub fn at_least(field: &str, value: f64, min: f64) -> Result<f64> {
    if value.is_finite() && (min..).contains(&value) {
        return Ok(value + 0.0);
    }
    Err(Error::invalid(field, format!("must be a finite number, at least {min}")))
}

/// Checks an id of 1 to 64 characters that never need quoting: `[A-Za-z0-9_-]`.
pub fn id(field: &str, value: &str) -> Result<String> {
    if value.is_empty() {
        return Err(Error::invalid(field, "is required"));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if value.len() > 64 || !value.chars().all(fits) {
        return Err(Error::invalid(field, "must be 1 to 64 characters of A-Z, a-z, 0-9, _ and -"));
    }
    Ok(value.to_string())
}

/// Checks a UUID in its canonical form of 36 characters.
pub fn uuid(field: &str, value: &str) -> Result<Uuid> {
    if value.is_empty() {
        return Err(Error::invalid(field, "is required"));
    }
    // The parser also accepts braces, URNs and plain hex; the API has a single form.
    match Uuid::try_parse(value) {
        Ok(uuid) if value.len() == 36 => Ok(uuid),
        _ => Err(Error::invalid(field, "must be a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057")),
    }
}

/// Checks a list of at most 1,000 UUIDs.
pub fn uuids(field: &str, values: &[String]) -> Result<Vec<Uuid>> {
    if values.len() > 1_000 {
        return Err(Error::invalid(field, "must have at most 1000 entries"));
    }
    values.iter().enumerate().map(|(index, value)| uuid(&format!("{field}[{index}]"), value)).collect()
}

/// Checks the id of a row numbered by the database.
pub fn row_id(field: &str, value: i64) -> Result<i64> {
    if (1..).contains(&value) {
        return Ok(value);
    }
    Err(Error::invalid(field, "must be a positive number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_counted_in_characters_and_hold_no_nul() {
        assert!(text("f", &"ä".repeat(255), 0..=255).is_ok());
        for (value, problem) in [
            ("", "`f` is required".to_string()),
            (&*"ä".repeat(256), "`f` must have at most 255 characters".into()),
            ("a\0b", "`f` must not contain a NUL character".into()),
        ] {
            assert_eq!(text("f", value, 1..=255).unwrap_err().to_string(), problem);
        }
        assert_eq!(name("f", " \t", 1..=255).unwrap_err().to_string(), "`f` must not be blank");
    }

    #[test]
    fn nan_is_in_no_range() {
        for value in [f64::NAN, f64::INFINITY, -0.1, 1.1] {
            assert!(within("f", value, 0.0..=1.0).is_err(), "{value}");
        }
        assert!(at_least("f", f64::NAN, 0.0).is_err());
        assert!(within("f", 1.0, 0.0..=1.0).is_ok());
    }

    #[test]
    fn negative_zero_becomes_zero() {
        for checked in [within("f", -0.0, 0.0..=1.0), at_least("f", -0.0, 0.0)] {
            assert!(checked.unwrap().is_sign_positive());
        }
    }

    #[test]
    fn uuids_have_one_form() {
        for value in ["", "x", "{01890a5d-ac96-774b-bcce-b302099a8057}", "01890a5dac96774bbcceb302099a8057"] {
            assert!(uuid("f", value).is_err(), "{value}");
        }
        assert!(uuid("f", "01890a5d-ac96-774b-bcce-b302099a8057").is_ok());
    }
}
