//! Templates of dedup keys. Alerts of a rule with the same key are duplicates within a cooldown.

use uuid::Uuid;

use crate::error::{Error, Result};

/// Largest length of a dedup key, in characters.
const MAX_KEY_CHARS: usize = 255;

/// Largest length of the value of a variable, in characters.
const MAX_VALUE_CHARS: usize = 64;

/// Parsed dedup key template.
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

/// Values of the template variables.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    pub camera_id: &'a str,
    pub rule_id: Uuid,
    /// Type of the matching detection.
    pub object_type: Option<&'a str>,
    /// Zone of the matching detection.
    pub zone_id: Option<&'a str>,
    pub event_id: i64,
}

impl Template {
    /// Parses a template. `field` is the path for errors.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::invalid(field, "must not be empty"));
        }
        if text.chars().count() > MAX_KEY_CHARS {
            return Err(Error::invalid(field, format!("must have at most {MAX_KEY_CHARS} characters")));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (before, after) = rest.split_once('{').unwrap_or((rest, ""));
            if let Some(c) = before.chars().find(|c| !is_allowed(*c)) {
                let problem = format!("must not contain `{}` outside of a variable", c.escape_default());
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
                    return Err(Error::invalid(field, format!("has an unknown variable `{{{other}}}`")));
                }
            });
            rest = after;
        }
        let template = Self(parts);
        if template.max_key_length() > MAX_KEY_CHARS {
            let problem = format!("could give a key of more than {MAX_KEY_CHARS} characters");
            return Err(Error::invalid(field, problem));
        }
        Ok(template)
    }

    /// Returns the largest possible length of a key.
    fn max_key_length(&self) -> usize {
        let length = |part: &Part| match part {
            Part::Text(text) => text.len(),
            Part::CameraId | Part::ObjectType | Part::ZoneId => MAX_VALUE_CHARS,
            Part::RuleId => 36,
            Part::EventId => 19,
        };
        self.0.iter().map(length).sum()
    }

    /// Returns true if every event gets its own key.
    pub fn is_per_event(&self) -> bool {
        self.0.contains(&Part::EventId)
    }

    /// Renders the key for the given values.
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

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-')
}

/// Appends a value and replaces characters that keys must not contain. A long value is cut and gets
/// a hash of the full value, so that values with equal beginnings stay distinct.
fn push_value(key: &mut String, value: &str) {
    let clean = |c: char| if is_allowed(c) { c } else { '_' };
    if value.chars().count() <= MAX_VALUE_CHARS {
        key.extend(value.chars().map(clean));
        return;
    }
    let hash = value
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    key.extend(value.chars().take(MAX_VALUE_CHARS - 17).map(clean));
    key.extend(["_".to_string(), format!("{hash:016x}")]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, object_type: Option<&str>) -> String {
        let rule_id = Uuid::nil();
        let values = Values { camera_id: "door", rule_id, object_type, zone_id: None, event_id: 7 };
        Template::parse("t", template).unwrap().render(&values)
    }

    #[test]
    fn variables_are_filled_in() {
        assert_eq!(render("{camera_id}:{rule_id}", None), format!("door:{}", Uuid::nil()));
        assert_eq!(render("a-{object_type}:{zone_id}_{event_id}", Some("traffic light")), "a-traffic_light:none_7");
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
        for text in ["", "{}", "{0}", "{camera}", "{camera_id", "camera_id}", "a b", "{{x}}", "ä", &long, overflowing]
        {
            assert!(Template::parse("t", text).is_err(), "{text}");
        }
        let error = Template::parse("t", "{user.password}").unwrap_err();
        assert_eq!(error.to_string(), "`t` has an unknown variable `{user.password}`");
    }
}
