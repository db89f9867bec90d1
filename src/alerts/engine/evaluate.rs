//! Evaluates one rule for one event. Pure: reads no database and no clock.

use std::{
    cell::{Cell, OnceCell},
    sync::Arc,
};

use chrono::{DateTime, Utc};

use super::rule::Rule;
use crate::{
    entity::{detection, event},
    pb::RuleStop,
    zones::{Placement, PlacementError, Zone, ZoneSet},
};

/// Largest number of object types in the explanation of a missed `object_types` condition.
const MAX_LISTED_TYPES: usize = 10;

/// Facts of an event that rules evaluate.
#[derive(Debug)]
pub struct EventFacts {
    pub camera_id: String,
    pub risk_score: Option<i32>,
    pub started_at: DateTime<Utc>,
    pub detections: Vec<DetectionFacts>,
    /// Enabled zones of all cameras.
    pub zones: Arc<ZoneSet>,
    /// Description of the detected types, built when the first rule needs the text.
    pub types: OnceCell<String>,
}

/// Facts of a detection that rules evaluate.
#[derive(Debug)]
pub struct DetectionFacts {
    /// Object type in lower case.
    pub object_type: Option<String>,
    pub confidence: Option<f64>,
    /// Placement in the picture.
    pub placement: Result<Placement, PlacementError>,
    /// Cached result per zone of the camera. `None` until a rule tests the zone.
    pub hits: OnceCell<Vec<Cell<Option<bool>>>>,
}

impl EventFacts {
    /// Collects the facts of an event and of the detections.
    pub fn of(event: &event::Model, detections: &[detection::Model], zones: Arc<ZoneSet>) -> Self {
        let facts = |detection: &detection::Model| {
            let object_type = detection.object_type.as_deref();
            DetectionFacts::new(object_type, detection.confidence, Placement::of(detection))
        };
        Self {
            camera_id: event.camera_id.clone(),
            risk_score: event.risk_score,
            started_at: event.started_at,
            detections: detections.iter().map(facts).collect(),
            zones,
            types: OnceCell::new(),
        }
    }
}

impl DetectionFacts {
    /// Collects the facts of a detection.
    pub fn new(
        object_type: Option<&str>,
        confidence: Option<f64>,
        placement: Result<Placement, PlacementError>,
    ) -> Self {
        Self { object_type: object_type.map(str::to_lowercase), confidence, placement, hits: OnceCell::new() }
    }

    /// Returns true if the detection is in the zone at `index`. Every call must pass the same
    /// zones, because results are cached by position.
    pub fn is_in(&self, zones: &[Zone], index: usize) -> bool {
        let Ok(placement) = &self.placement else {
            return false;
        };
        let hits = self.hits.get_or_init(|| vec![Cell::new(None); zones.len()]);
        hits[index].get().unwrap_or_else(|| {
            let hit = zones[index].hit(placement).is_some();
            hits[index].set(Some(hit));
            hit
        })
    }
}

/// Result of evaluating a rule for an event.
#[derive(Debug, PartialEq)]
pub enum Verdict<'a> {
    /// Every condition is met. `object_type` is the type of the first matching detection with a
    /// type. Without conditions on detections, every detection matches. For a rule with zones,
    /// `zone_id` is the first zone with a matching detection, and `object_type` comes from a
    /// detection in the zone.
    Matches { object_type: Option<&'a str>, zone_id: Option<&'a str> },
    /// A condition is not met. Has the failed condition and a readable explanation with the values.
    Stopped(RuleStop, String),
}

/// Evaluates a rule for an event. All conditions that are set must be met. Suppression, such as a
/// cooldown, is decided later.
///
/// Explains failed conditions. [`Index`](super::index::Index) finds the same matches faster,
/// without explanations.
pub fn evaluate<'a>(rule: &Rule, facts: &'a EventFacts) -> Verdict<'a> {
    use Verdict::Stopped;

    if !rule.camera_ids.is_empty() && !rule.camera_ids.contains(&facts.camera_id) {
        return Stopped(RuleStop::CameraIds, format!("camera_id {} is not listed", facts.camera_id));
    }
    if let Some(threshold) = rule.risk_threshold {
        match facts.risk_score {
            Some(score) if score >= threshold => {}
            Some(score) => {
                return Stopped(RuleStop::RiskThreshold, format!("risk_score {score} < {threshold}"));
            }
            None => {
                return Stopped(RuleStop::RiskThreshold, format!("no risk_score, {threshold} is required"));
            }
        }
    }
    if let Some(schedule) = &rule.schedule
        && !schedule.contains(facts.started_at)
    {
        return Stopped(RuleStop::Schedule, format!("started_at {} is in no window", facts.started_at.to_rfc3339()));
    }

    // One detection must satisfy type, confidence and zone together.
    let has_type = |detection: &&DetectionFacts| rule.has_object_type(detection);
    let is_confident = |detection: &&DetectionFacts| rule.has_confidence(detection);
    let mut matching =
        facts.detections.iter().filter(|detection| has_type(detection) && is_confident(detection)).peekable();
    if matching.peek().is_none() && (!rule.object_types.is_empty() || rule.min_confidence.is_some()) {
        let mut typed = facts.detections.iter().filter(has_type).peekable();
        if typed.peek().is_none() && !rule.object_types.is_empty() {
            let description = facts.types.get_or_init(|| describe_types(&facts.detections));
            return Stopped(RuleStop::ObjectTypes, description.clone());
        }
        let minimum = rule.min_confidence.unwrap_or_default();
        let best = typed.filter_map(|detection| detection.confidence).max_by(f64::total_cmp);
        return Stopped(
            RuleStop::MinConfidence,
            match best {
                Some(best) => format!("confidence {best} < {minimum}"),
                None => format!("no confidence, {minimum} is required"),
            },
        );
    }
    if !rule.zone_ids.is_empty() {
        return evaluate_zones(rule, facts, &matching.collect::<Vec<_>>());
    }
    Verdict::Matches { object_type: matching.find_map(|detection| detection.object_type.as_deref()), zone_id: None }
}

impl Rule {
    /// Returns true if the detection has one of the rule's object types, or the rule has none.
    pub(crate) fn has_object_type(&self, detection: &DetectionFacts) -> bool {
        let object_type = detection.object_type.as_ref();
        self.object_types.is_empty() || object_type.is_some_and(|name| self.object_types.contains(name))
    }

    /// Returns true if the detection has at least the rule's minimum confidence, or the rule has
    /// none.
    pub(crate) fn has_confidence(&self, detection: &DetectionFacts) -> bool {
        self.min_confidence.is_none_or(|minimum| detection.confidence.is_some_and(|confidence| confidence >= minimum))
    }
}

/// Evaluates the zones of a rule for the detections that meet all other conditions.
fn evaluate_zones<'a>(rule: &Rule, facts: &'a EventFacts, matching: &[&'a DetectionFacts]) -> Verdict<'a> {
    let zones = facts.zones.of(&facts.camera_id);
    let is_named = |index: &usize| rule.zone_ids.contains(&zones[*index].id);
    // The first zone of each detection suffices: the smallest of the first zones is the first zone
    // with any detection.
    let first_zone = |detection: &&'a DetectionFacts| {
        let mut named = (0..zones.len()).filter(is_named);
        named.find(|index| detection.is_in(zones, *index))
    };
    let Some(zone) = matching.iter().filter_map(first_zone).min() else {
        return Verdict::Stopped(RuleStop::ZoneIds, explain_zone_miss(rule, facts, matching));
    };
    let mut inside = matching.iter().filter(|detection| first_zone(detection) == Some(zone));
    Verdict::Matches {
        object_type: inside.find_map(|detection| detection.object_type.as_deref()),
        zone_id: Some(&zones[zone].id),
    }
}

/// Explains why no detection is in a zone of the rule.
fn explain_zone_miss(rule: &Rule, facts: &EventFacts, matching: &[&DetectionFacts]) -> String {
    let mut zones = facts.zones.of(&facts.camera_id).iter();
    if !zones.any(|zone| rule.zone_ids.contains(&zone.id)) {
        let camera_id = &facts.camera_id;
        return format!("none of zone_ids is an enabled zone of camera {camera_id}");
    }
    let problem = match matching.len() {
        0 => return "there is no detection".to_string(),
        1 => "the detection is in none of zone_ids".to_string(),
        number => format!("none of {number} detections is in one of zone_ids"),
    };
    let mut unplaced = matching.iter().filter_map(|detection| detection.placement.err()).peekable();
    let Some(first) = unplaced.peek().copied() else {
        return problem;
    };
    let first_problem = first.as_str();
    let number = unplaced.count();
    format!("{problem}; unknown placement of {number}, the first has {first_problem}")
}

/// Describes the detected object types.
fn describe_types(detections: &[DetectionFacts]) -> String {
    let mut types: Vec<_> = detections.iter().filter_map(|detection| detection.object_type.as_deref()).collect();
    types.sort_unstable();
    types.dedup();
    let ellipsis = if types.len() > MAX_LISTED_TYPES { ", …" } else { "" };
    types.truncate(MAX_LISTED_TYPES);
    format!("only [{}{ellipsis}] was seen", types.join(", "))
}

#[cfg(test)]
pub(crate) mod tests;
