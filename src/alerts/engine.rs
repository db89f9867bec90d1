//! Judging an event by a rule. Pure: it reads no database and no clock.

use std::cell::OnceCell;

use chrono::{DateTime, Utc};

use super::rules::Rule;
use crate::pb::RuleStop;

/// How many of the types that were seen are told to whoever asks why a rule did not fire.
const TOLD: usize = 10;

/// What rules look at of an event.
#[derive(Debug)]
pub struct Facts {
    pub camera_id: String,
    pub risk_score: Option<i32>,
    pub started_at: DateTime<Utc>,
    /// Whether the event raises no alerts for now.
    pub snoozed: bool,
    pub detections: Vec<Seen>,
    /// The types of the detections for people, made when the first rule needs them.
    pub types: OnceCell<String>,
}

/// What rules look at of a detection.
#[derive(Debug)]
pub struct Seen {
    /// Lower case.
    pub object_type: Option<String>,
    pub confidence: Option<f64>,
}

/// What a rule says of an event.
#[derive(Debug, PartialEq)]
pub enum Verdict<'a> {
    /// It matches. The type is that of the first matching detection that has one; without
    /// conditions every detection matches.
    Matches { object_type: Option<&'a str> },
    /// It does not, for this reason and with these values.
    Stopped(RuleStop, String),
}

/// Judges an event by a rule: every condition that is set must be met. Cooldown comes later.
pub fn judge<'a>(rule: &Rule, facts: &'a Facts) -> Verdict<'a> {
    use Verdict::Stopped;

    if facts.snoozed {
        return Stopped(RuleStop::Snoozed, "the event is snoozed".to_string());
    }
    if !rule.camera_ids.is_empty() && !rule.camera_ids.contains(&facts.camera_id) {
        return Stopped(
            RuleStop::CameraIds,
            format!("camera_id {} is not listed", facts.camera_id),
        );
    }
    if let Some(threshold) = rule.risk_threshold {
        match facts.risk_score {
            Some(score) if score >= threshold => {}
            Some(score) => {
                return Stopped(
                    RuleStop::RiskThreshold,
                    format!("risk_score {score} < {threshold}"),
                );
            }
            None => {
                return Stopped(
                    RuleStop::RiskThreshold,
                    format!("no risk_score, {threshold} is asked for"),
                );
            }
        }
    }
    if let Some(schedule) = &rule.schedule
        && !schedule.contains(facts.started_at)
    {
        return Stopped(
            RuleStop::Schedule,
            format!(
                "started_at {} is in no window",
                facts.started_at.to_rfc3339()
            ),
        );
    }

    // Type and confidence must come from one and the same detection.
    let of_type = |seen: &&Seen| {
        rule.object_types.is_empty()
            || seen
                .object_type
                .as_ref()
                .is_some_and(|name| rule.object_types.contains(name))
    };
    let sure = |seen: &&Seen| {
        rule.min_confidence
            .is_none_or(|least| seen.confidence.is_some_and(|is| is >= least))
    };
    let mut found = facts
        .detections
        .iter()
        .filter(|seen| of_type(seen) && sure(seen))
        .peekable();
    if found.peek().is_none() && (!rule.object_types.is_empty() || rule.min_confidence.is_some()) {
        let mut typed = facts.detections.iter().filter(of_type).peekable();
        if typed.peek().is_none() && !rule.object_types.is_empty() {
            let told = facts.types.get_or_init(|| only(&facts.detections));
            return Stopped(RuleStop::ObjectTypes, told.clone());
        }
        let least = rule.min_confidence.unwrap_or_default();
        let best = typed
            .filter_map(|seen| seen.confidence)
            .max_by(f64::total_cmp);
        return Stopped(
            RuleStop::MinConfidence,
            match best {
                Some(best) => format!("confidence {best} < {least}"),
                None => format!("no confidence, {least} is asked for"),
            },
        );
    }
    if !rule.zone_ids.is_empty() {
        return Stopped(
            RuleStop::ZoneIds,
            "no detection is known to be in a zone".to_string(),
        );
    }
    Verdict::Matches {
        object_type: found.find_map(|seen| seen.object_type.as_deref()),
    }
}

/// Which types were seen, for people.
fn only(detections: &[Seen]) -> String {
    let mut seen: Vec<_> = detections
        .iter()
        .filter_map(|seen| seen.object_type.as_deref())
        .collect();
    seen.sort_unstable();
    seen.dedup();
    let more = if seen.len() > TOLD { ", …" } else { "" };
    seen.truncate(TOLD);
    format!("only [{}{more}] was seen", seen.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::{
        Strings,
        alert::AlertSeverity,
        alert_rule::{self, Schedule},
    };

    fn row() -> alert_rule::Model {
        let now = crate::entity::now();
        alert_rule::Model {
            id: uuid::Uuid::nil(),
            name: "r".into(),
            description: None,
            enabled: true,
            severity: AlertSeverity::Medium,
            risk_threshold: None,
            object_types: None,
            camera_ids: None,
            zone_ids: None,
            min_confidence: None,
            schedule: None,
            conditions: None,
            dedup_key_template: "{camera_id}".into(),
            cooldown_seconds: 0,
            channels: None,
            created_at: now,
            updated_at: now,
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "a column that may be NULL")]
    fn strings(values: &[&str]) -> Option<Strings> {
        Some(Strings(values.iter().map(ToString::to_string).collect()))
    }

    fn seen(object_type: &str, confidence: impl Into<Option<f64>>) -> Seen {
        Seen {
            object_type: Some(object_type.into()),
            confidence: confidence.into(),
        }
    }

    fn stop(rule: alert_rule::Model, facts: &Facts) -> Option<RuleStop> {
        match judge(&Rule::compile(rule).unwrap(), facts) {
            Verdict::Matches { .. } => None,
            Verdict::Stopped(stop, _) => Some(stop),
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table of cases")]
    fn every_condition_that_is_set_must_be_met() {
        let facts = Facts {
            camera_id: "door".into(),
            risk_score: Some(70),
            started_at: "2026-11-27T12:00:00Z".parse().unwrap(),
            snoozed: false,
            detections: vec![seen("person", 0.5), seen("dog", 0.95), seen("car", None)],
            types: OnceCell::new(),
        };
        let at = |start: &str, end: &str| {
            Some(Schedule {
                start_time: Some(start.into()),
                end_time: Some(end.into()),
                ..Schedule::default()
            })
        };
        let cases = [
            (row(), None),
            (
                alert_rule::Model {
                    risk_threshold: Some(70),
                    ..row()
                },
                None,
            ),
            (
                alert_rule::Model {
                    risk_threshold: Some(71),
                    ..row()
                },
                Some(RuleStop::RiskThreshold),
            ),
            (
                alert_rule::Model {
                    camera_ids: strings(&["door"]),
                    ..row()
                },
                None,
            ),
            (
                alert_rule::Model {
                    camera_ids: strings(&["Door"]),
                    ..row()
                },
                Some(RuleStop::CameraIds),
            ),
            (
                alert_rule::Model {
                    object_types: strings(&["PERSON"]),
                    ..row()
                },
                None,
            ),
            (
                alert_rule::Model {
                    object_types: strings(&["cat"]),
                    ..row()
                },
                Some(RuleStop::ObjectTypes),
            ),
            (
                alert_rule::Model {
                    object_types: strings(&[]),
                    ..row()
                },
                None,
            ),
            (
                alert_rule::Model {
                    min_confidence: Some(0.95),
                    ..row()
                },
                None,
            ),
            (
                alert_rule::Model {
                    min_confidence: Some(0.96),
                    ..row()
                },
                Some(RuleStop::MinConfidence),
            ),
            (
                alert_rule::Model {
                    object_types: strings(&["person"]),
                    min_confidence: Some(0.9),
                    ..row()
                },
                Some(RuleStop::MinConfidence),
            ),
            (
                alert_rule::Model {
                    object_types: strings(&["dog"]),
                    min_confidence: Some(0.9),
                    ..row()
                },
                None,
            ),
            (
                alert_rule::Model {
                    object_types: strings(&["car"]),
                    min_confidence: Some(0.0),
                    ..row()
                },
                Some(RuleStop::MinConfidence),
            ),
            (
                alert_rule::Model {
                    zone_ids: strings(&["z"]),
                    ..row()
                },
                Some(RuleStop::ZoneIds),
            ),
            (
                alert_rule::Model {
                    schedule: at("12:00", "13:00"),
                    ..row()
                },
                None,
            ),
            (
                alert_rule::Model {
                    schedule: at("11:00", "12:00"),
                    ..row()
                },
                Some(RuleStop::Schedule),
            ),
        ];
        for (rule, expected) in cases {
            let conditions = conditions_of(&rule);
            assert_eq!(stop(rule, &facts), expected, "{conditions}");
        }
        assert_eq!(
            stop(
                row(),
                &Facts {
                    snoozed: true,
                    ..facts
                }
            ),
            Some(RuleStop::Snoozed)
        );
    }

    #[test]
    fn what_is_not_known_does_not_match() {
        let facts = Facts {
            camera_id: "door".into(),
            risk_score: None,
            started_at: crate::entity::now(),
            snoozed: false,
            detections: vec![],
            types: OnceCell::new(),
        };
        let threshold = alert_rule::Model {
            risk_threshold: Some(0),
            ..row()
        };
        assert_eq!(stop(threshold, &facts), Some(RuleStop::RiskThreshold));
        let confidence = alert_rule::Model {
            min_confidence: Some(0.0),
            ..row()
        };
        assert_eq!(stop(confidence, &facts), Some(RuleStop::MinConfidence));
        assert_eq!(stop(row(), &facts), None);
    }

    fn conditions_of(rule: &alert_rule::Model) -> String {
        Rule::compile(rule.clone())
            .unwrap()
            .conditions
            .join(" and ")
    }
}
