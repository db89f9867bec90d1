//! Judging an event by a rule. Pure: it reads no database and no clock.

use std::{
    cell::{Cell, OnceCell},
    sync::Arc,
};

use chrono::{DateTime, Utc};

use super::live::Rule;
use crate::{
    entity::{detection, event},
    pb::RuleStop,
    zones::{Place, Unplaced, Zone, ZoneSet},
};

/// How many of the types that were seen are told to whoever asks why a rule did not fire.
const TOLD: usize = 10;

/// What rules look at of an event.
#[derive(Debug)]
pub struct Facts {
    pub camera_id: String,
    pub risk_score: Option<i32>,
    pub started_at: DateTime<Utc>,
    pub detections: Vec<Seen>,
    /// The enabled zones of all cameras.
    pub zones: Arc<ZoneSet>,
    /// The types of the detections for people, made when the first rule needs them.
    pub types: OnceCell<String>,
}

/// What rules look at of a detection.
#[derive(Debug)]
pub struct Seen {
    /// Lower case.
    pub object_type: Option<String>,
    pub confidence: Option<f64>,
    /// Where in the picture it is.
    pub place: Result<Place, Unplaced>,
    /// Whether it is in each of the camera's zones, found when the first rule asks for the zone.
    pub hits: OnceCell<Vec<Cell<Option<bool>>>>,
}

impl Facts {
    /// What rules look at of this event with these detections.
    pub fn of(event: &event::Model, detections: &[detection::Model], zones: Arc<ZoneSet>) -> Self {
        let seen = |detection: &detection::Model| {
            let object_type = detection.object_type.as_deref();
            Seen::new(object_type, detection.confidence, Place::of(detection))
        };
        Self {
            camera_id: event.camera_id.clone(),
            risk_score: event.risk_score,
            started_at: event.started_at,
            detections: detections.iter().map(seen).collect(),
            zones,
            types: OnceCell::new(),
        }
    }
}

impl Seen {
    /// What rules look at of a detection.
    pub fn new(
        object_type: Option<&str>,
        confidence: Option<f64>,
        place: Result<Place, Unplaced>,
    ) -> Self {
        Self {
            object_type: object_type.map(str::to_lowercase),
            confidence,
            place,
            hits: OnceCell::new(),
        }
    }

    /// Whether it is in one of the zones. It is always asked about the same ones.
    pub fn is_in(&self, zones: &[Zone], at: usize) -> bool {
        let Ok(place) = &self.place else {
            return false;
        };
        let hits = self.hits.get_or_init(|| vec![Cell::new(None); zones.len()]);
        hits[at].get().unwrap_or_else(|| {
            let hit = zones[at].hit(place).is_some();
            hits[at].set(Some(hit));
            hit
        })
    }
}

/// What a rule says of an event.
#[derive(Debug, PartialEq)]
pub enum Verdict<'a> {
    /// It matches. The type is that of the first matching detection that has one; without
    /// conditions every detection matches. Of a rule that asks for zones, the zone is the first that
    /// a matching detection is in, and the type is that of a detection in this zone.
    Matches {
        object_type: Option<&'a str>,
        zone_id: Option<&'a str>,
    },
    /// It does not, for this reason and with these values.
    Stopped(RuleStop, String),
}

/// Judges an event by a rule: every condition that is set must be met. What holds back a rule that
/// matches, as its cooldown does, comes later.
///
/// This is the slow form that says why; [`Index`](super::index::Index) finds the same matches.
pub fn judge<'a>(rule: &Rule, facts: &'a Facts) -> Verdict<'a> {
    use Verdict::Stopped;

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

    // Type, confidence and zone must come from one and the same detection.
    let of_type = |seen: &&Seen| rule.is_of_type(seen);
    let sure = |seen: &&Seen| rule.is_sure(seen);
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
        return judge_zones(rule, facts, &found.collect::<Vec<_>>());
    }
    Verdict::Matches {
        object_type: found.find_map(|seen| seen.object_type.as_deref()),
        zone_id: None,
    }
}

impl Rule {
    /// Whether a detection is of its types.
    pub(crate) fn is_of_type(&self, seen: &Seen) -> bool {
        let object_type = seen.object_type.as_ref();
        self.object_types.is_empty()
            || object_type.is_some_and(|name| self.object_types.contains(name))
    }

    /// Whether a detection is as sure as it asks for.
    pub(crate) fn is_sure(&self, seen: &Seen) -> bool {
        self.min_confidence
            .is_none_or(|least| seen.confidence.is_some_and(|is| is >= least))
    }
}

/// Judges by the zones of a rule the detections that meet its other conditions.
fn judge_zones<'a>(rule: &Rule, facts: &'a Facts, found: &[&'a Seen]) -> Verdict<'a> {
    let zones = facts.zones.of(&facts.camera_id);
    let asked = |at: &usize| rule.zone_ids.contains(&zones[*at].id);
    // The first zone that any of them is in is also the first one of those that are in it.
    let first = |seen: &&'a Seen| {
        let mut asked = (0..zones.len()).filter(asked);
        asked.find(|at| seen.is_in(zones, *at))
    };
    let Some(zone) = found.iter().filter_map(first).min() else {
        return Verdict::Stopped(RuleStop::ZoneIds, nowhere(rule, facts, found));
    };
    let mut inside = found.iter().filter(|seen| first(seen) == Some(zone));
    Verdict::Matches {
        object_type: inside.find_map(|seen| seen.object_type.as_deref()),
        zone_id: Some(&zones[zone].id),
    }
}

/// Why none of the detections is in a zone of the rule, for people.
fn nowhere(rule: &Rule, facts: &Facts, found: &[&Seen]) -> String {
    let mut zones = facts.zones.of(&facts.camera_id).iter();
    if !zones.any(|zone| rule.zone_ids.contains(&zone.id)) {
        let camera_id = &facts.camera_id;
        return format!("none of zone_ids is an enabled zone of camera {camera_id}");
    }
    let none = match found.len() {
        0 => return "there is no detection".to_string(),
        1 => "the detection is in none of zone_ids".to_string(),
        number => format!("none of {number} detections is in one of zone_ids"),
    };
    let mut unplaced = found.iter().filter_map(|seen| seen.place.err()).peekable();
    let Some(first) = unplaced.peek().copied() else {
        return none;
    };
    let first = first.as_str();
    let number = unplaced.count();
    format!("{none}; where {number} would be is not known, the first has {first}")
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
pub(crate) mod tests;
