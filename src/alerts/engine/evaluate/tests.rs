//! Tests which events a rule matches.

use super::*;
use crate::entity::{
    Strings,
    alert::AlertSeverity,
    alert_rule::{self, Schedule},
};

pub(in crate::alerts) fn row() -> alert_rule::Model {
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
        escalation: None,
        created_at: now,
        updated_at: now,
        version_id: 1,
        flap_threshold: None,
        flap_window_seconds: None,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "a column that may be NULL")]
fn strings(values: &[&str]) -> Option<Strings> {
    Some(Strings(values.iter().map(ToString::to_string).collect()))
}

fn detection(object_type: &str, confidence: impl Into<Option<f64>>) -> DetectionFacts {
    DetectionFacts::new(Some(object_type), confidence.into(), Err(PlacementError::NoBox))
}

fn stop(rule: alert_rule::Model, facts: &EventFacts) -> Option<RuleStop> {
    match evaluate(&Rule::compile(rule).unwrap(), facts) {
        Verdict::Matches { .. } => None,
        Verdict::Stopped(stop, _) => Some(stop),
    }
}

#[test]
fn every_condition_that_is_set_must_be_met() {
    let facts = EventFacts {
        camera_id: "door".into(),
        risk_score: Some(70),
        started_at: "2026-11-27T12:00:00Z".parse().unwrap(),
        detections: vec![detection("person", 0.5), detection("dog", 0.95), detection("car", None)],
        zones: Arc::default(),
        types: OnceCell::new(),
    };
    let at = |start: &str, end: &str| {
        Some(Schedule { start_time: Some(start.into()), end_time: Some(end.into()), ..Schedule::default() })
    };
    let cases = [
        (row(), None),
        (alert_rule::Model { risk_threshold: Some(70), ..row() }, None),
        (alert_rule::Model { risk_threshold: Some(71), ..row() }, Some(RuleStop::RiskThreshold)),
        (alert_rule::Model { camera_ids: strings(&["door"]), ..row() }, None),
        (alert_rule::Model { camera_ids: strings(&["Door"]), ..row() }, Some(RuleStop::CameraIds)),
        (alert_rule::Model { object_types: strings(&["PERSON"]), ..row() }, None),
        (alert_rule::Model { object_types: strings(&["cat"]), ..row() }, Some(RuleStop::ObjectTypes)),
        (alert_rule::Model { object_types: strings(&[]), ..row() }, None),
        (alert_rule::Model { min_confidence: Some(0.95), ..row() }, None),
        (alert_rule::Model { min_confidence: Some(0.96), ..row() }, Some(RuleStop::MinConfidence)),
        (
            alert_rule::Model { object_types: strings(&["person"]), min_confidence: Some(0.9), ..row() },
            Some(RuleStop::MinConfidence),
        ),
        (alert_rule::Model { object_types: strings(&["dog"]), min_confidence: Some(0.9), ..row() }, None),
        (
            alert_rule::Model { object_types: strings(&["car"]), min_confidence: Some(0.0), ..row() },
            Some(RuleStop::MinConfidence),
        ),
        (alert_rule::Model { zone_ids: strings(&["z"]), ..row() }, Some(RuleStop::ZoneIds)),
        (alert_rule::Model { schedule: at("12:00", "13:00"), ..row() }, None),
        (alert_rule::Model { schedule: at("11:00", "12:00"), ..row() }, Some(RuleStop::Schedule)),
    ];
    for (rule, expected) in cases {
        let conditions = conditions_of(&rule);
        assert_eq!(stop(rule, &facts), expected, "{conditions}");
    }
}

#[test]
fn what_is_not_known_does_not_match() {
    let facts = EventFacts {
        camera_id: "door".into(),
        risk_score: None,
        started_at: crate::entity::now(),
        detections: vec![],
        zones: Arc::default(),
        types: OnceCell::new(),
    };
    let threshold = alert_rule::Model { risk_threshold: Some(0), ..row() };
    assert_eq!(stop(threshold, &facts), Some(RuleStop::RiskThreshold));
    let confidence = alert_rule::Model { min_confidence: Some(0.0), ..row() };
    assert_eq!(stop(confidence, &facts), Some(RuleStop::MinConfidence));
    assert_eq!(stop(row(), &facts), None);
}

fn conditions_of(rule: &alert_rule::Model) -> String {
    Rule::compile(rule.clone()).unwrap().conditions.join(" and ")
}
