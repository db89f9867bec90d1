//! Templates of dedup keys: what makes two alerts of a rule the same.

use uuid::Uuid;

use crate::error::{Error, Result};

/// The longest key, in characters.
const KEY_LENGTH: usize = 255;

/// The longest that the value of a variable gets.
const VALUE_LENGTH: usize = 64;

/// A template, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    CameraId,
    RuleId,
    ObjectType,
    ZoneId,
    EventId,
}

/// The values of the variables.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    pub camera_id: &'a str,
    pub rule_id: Uuid,
    /// Of the detection that matched.
    pub object_type: Option<&'a str>,
    /// Of the zone that matched.
    pub zone_id: Option<&'a str>,
    pub event_id: i64,
}

impl Template {
    /// Reads a template that came in `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::invalid(field, "must not be empty"));
        }
        if text.chars().count() > KEY_LENGTH {
            return Err(Error::invalid(
                field,
                format!("must have at most {KEY_LENGTH} characters"),
            ));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (before, after) = rest.split_once('{').unwrap_or((rest, ""));
            if let Some(c) = before.chars().find(|c| !allowed(*c)) {
                let problem = format!(
                    "must not contain `{}` outside of a variable",
                    c.escape_default()
                );
                return Err(Error::invalid(field, problem));
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_string()));
            }
            if before.len() == rest.len() {
                break;
            }
            let Some((name, after)) = after.split_once('}') else {
                return Err(Error::invalid(field, "has a `{` without a `}`"));
            };
            parts.push(match name {
                "camera_id" => Part::CameraId,
                "rule_id" => Part::RuleId,
                "object_type" => Part::ObjectType,
                "zone_id" => Part::ZoneId,
                "event_id" => Part::EventId,
                other => {
                    return Err(Error::invalid(
                        field,
                        format!("has an unknown variable `{{{other}}}`"),
                    ));
                }
            });
            rest = after;
        }
        let template = Self(parts);
        if template.longest() > KEY_LENGTH {
            let problem = format!("could give a key of more than {KEY_LENGTH} characters");
            return Err(Error::invalid(field, problem));
        }
        Ok(template)
    }

    /// How long a key can get.
    fn longest(&self) -> usize {
        let length = |part: &Part| match part {
            Part::Text(text) => text.len(),
            Part::CameraId | Part::ObjectType | Part::ZoneId => VALUE_LENGTH,
            Part::RuleId => 36,
            Part::EventId => 19,
        };
        self.0.iter().map(length).sum()
    }

    /// Whether every event has a key of its own.
    pub fn is_per_event(&self) -> bool {
        self.0.contains(&Part::EventId)
    }

    /// The key for these values.
    pub fn render(&self, values: &Values<'_>) -> String {
        let mut key = String::with_capacity(96);
        for part in &self.0 {
            match part {
                Part::Text(text) => key.push_str(text),
                Part::CameraId => push_value(&mut key, values.camera_id),
                Part::ObjectType => push_value(&mut key, values.object_type.unwrap_or("unknown")),
                Part::ZoneId => push_value(&mut key, values.zone_id.unwrap_or("none")),
                Part::RuleId => key.push_str(&values.rule_id.to_string()),
                Part::EventId => key.push_str(&values.event_id.to_string()),
            }
        }
        key
    }
}

fn allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-')
}

/// Adds a value in the characters that a key may have. A long one keeps its beginning and gets a hash of the
/// whole, so that values which differ only at the end stay apart.
fn push_value(key: &mut String, value: &str) {
    let clean = |c: char| if allowed(c) { c } else { '_' };
    if value.chars().count() <= VALUE_LENGTH {
        key.extend(value.chars().map(clean));
        return;
    }
    let hash = value.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    key.extend(value.chars().take(VALUE_LENGTH - 17).map(clean));
    key.extend(["_".to_string(), format!("{hash:016x}")]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, object_type: Option<&str>) -> String {
        let rule_id = Uuid::nil();
        let values = Values {
            camera_id: "door",
            rule_id,
            object_type,
            zone_id: None,
            event_id: 7,
        };
        Template::parse("t", template).unwrap().render(&values)
    }

    #[test]
    fn variables_are_filled_in() {
        assert_eq!(
            render("{camera_id}:{rule_id}", None),
            format!("door:{}", Uuid::nil())
        );
        assert_eq!(
            render(
                "a-{object_type}:{zone_id}_{event_id}",
                Some("traffic light")
            ),
            "a-traffic_light:none_7"
        );
        assert_eq!(render("{object_type}", None), "unknown");
        assert_eq!(render("fixed", None), "fixed");
    }

    #[test]
    fn a_key_always_fits() {
        let long = "x".repeat(200);
        let key = render("{object_type}", Some(&long));
        assert_eq!(key.len(), 64);
        assert_ne!(key, render("{object_type}", Some(&format!("{long}y"))));
        let all = "{camera_id}:{rule_id}:{object_type}:{zone_id}:{event_id}";
        assert!(Template::parse("t", all).is_ok());
    }

    #[test]
    fn bad_templates_are_refused() {
        let long = "x".repeat(256);
        let overflowing = "{camera_id}{camera_id}{camera_id}{camera_id}";
        for text in [
            "",
            "{}",
            "{0}",
            "{camera}",
            "{camera_id",
            "camera_id}",
            "a b",
            "{{x}}",
            "ä",
            &long,
            overflowing,
        ] {
            assert!(Template::parse("t", text).is_err(), "{text}");
        }
        let error = Template::parse("t", "{user.password}").unwrap_err();
        assert_eq!(
            error.to_string(),
            "`t` has an unknown variable `{user.password}`"
        );
    }
}
