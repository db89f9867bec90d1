//! The rules arranged for speed: only those that can concern an event are looked at, by comparing
//! numbers; nothing is said of those that do not match.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::Arc,
};

use super::{
    engine::{Facts, Seen},
    rules::{Rule, RuleSet},
    schedule::{Schedule, WallClock},
};
use crate::{
    time_zones::Tz,
    zones::{Zone, ZoneSet},
};

/// The rules and zones of one moment. Both are replaced independently, and an index with them.
#[derive(Debug, Default)]
pub struct Index {
    rules: Arc<RuleSet>,
    zones: Arc<ZoneSet>,
    /// What each of the rules asks for.
    conditions: Vec<Conditions>,
    /// Those that can match events of every camera, in the order of the rules.
    everywhere: Vec<Candidate>,
    /// Those that can match events of a camera only as they name it or zones of it, likewise.
    by_camera: HashMap<String, Vec<Candidate>>,
    /// The types that rules name, numbered.
    types: HashMap<String, usize>,
    /// The time zones of their schedules.
    timezones: Vec<Tz>,
}

/// A rule that can match events of some camera.
#[derive(Debug)]
struct Candidate {
    /// Which of the rules.
    rule: usize,
    /// Which of the camera's zones it asks for, in their order. Empty: the rule asks for none.
    zones: Box<[usize]>,
}

/// What a rule asks for beside cameras and zones.
#[derive(Debug)]
struct Conditions {
    risk_threshold: Option<i32>,
    min_confidence: Option<f64>,
    /// The bits of the `types`.
    bits: u64,
    /// The numbers of the types in order. Empty: any.
    types: Box<[usize]>,
    /// With the number of its time zone.
    schedule: Option<(usize, Schedule)>,
}

/// A rule that matches; see [`Verdict::Matches`](super::engine::Verdict::Matches).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match<'a> {
    /// Which of the rules.
    pub rule: usize,
    pub object_type: Option<&'a str>,
    pub zone_id: Option<&'a str>,
}

impl Index {
    /// Arranges rules.
    pub fn new(rules: Arc<RuleSet>, zones: Arc<ZoneSet>) -> Self {
        let mut index = Self {
            rules,
            zones,
            ..Self::default()
        };
        let rules = index.rules.clone();
        let mut timezones = Vec::new();
        // Which rules name a zone.
        let mut naming: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, rule) in rules.iter().enumerate() {
            let conditions = Conditions::of(rule, &mut index.types, &mut timezones);
            index.conditions.push(conditions);
            for zone_id in &rule.zone_ids {
                naming.entry(zone_id).or_default().push(at);
            }
            if !rule.zone_ids.is_empty() {
                continue;
            }
            let candidate = || Candidate {
                rule: at,
                zones: Box::default(),
            };
            if rule.camera_ids.is_empty() {
                index.everywhere.push(candidate());
            }
            for camera_id in &rule.camera_ids {
                // Most cameras are there already, and many rules may name many.
                if let Some(camera) = index.by_camera.get_mut(camera_id) {
                    camera.push(candidate());
                } else {
                    let camera = vec![candidate()];
                    index.by_camera.insert(camera_id.clone(), camera);
                }
            }
        }
        index.timezones = timezones;
        if !naming.is_empty() {
            index.add_by_zones(&naming);
        }
        index
    }

    /// Adds the rules that name zones to the cameras that have these.
    fn add_by_zones(&mut self, naming: &HashMap<&str, Vec<usize>>) {
        for (camera_id, zones) in self.zones.cameras() {
            let mut asked: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for (at, zone) in zones.iter().enumerate() {
                let rules = naming.get(zone.id.as_str());
                for rule in rules.into_iter().flatten() {
                    let camera_ids = &self.rules[*rule].camera_ids;
                    if camera_ids.is_empty() || camera_ids.contains(camera_id) {
                        asked.entry(*rule).or_default().push(at);
                    }
                }
            }
            if asked.is_empty() {
                continue;
            }
            let camera = self.by_camera.entry(camera_id.to_string()).or_default();
            camera.extend(asked.into_iter().map(|(rule, zones)| Candidate {
                rule,
                zones: zones.into(),
            }));
            camera.sort_unstable_by_key(|candidate| candidate.rule);
        }
    }

    /// Whether it is made of these.
    pub fn is_of(&self, rules: &Arc<RuleSet>, zones: &Arc<ZoneSet>) -> bool {
        Arc::ptr_eq(&self.rules, rules) && Arc::ptr_eq(&self.zones, zones)
    }

    /// The rules.
    pub fn rules(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// The zones, which those of the facts must be.
    pub fn zones(&self) -> &Arc<ZoneSet> {
        &self.zones
    }

    /// The rules that match an event, in their order.
    pub fn matches<'a>(&'a self, facts: &'a Facts) -> Vec<Match<'a>> {
        let judging = Judging::new(self, facts);
        let of_camera = self.by_camera.get(&facts.camera_id);
        let of_camera = of_camera.map(Vec::as_slice).unwrap_or_default();
        let judge = |candidate| judging.judge(candidate);
        let mut matches: Vec<_> = self.everywhere.iter().filter_map(judge).collect();
        let everywhere = matches.len();
        matches.extend(of_camera.iter().filter_map(judge));
        if everywhere > 0 && matches.len() > everywhere {
            matches.sort_unstable_by_key(|found| found.rule);
        }
        matches
    }
}

impl Conditions {
    fn of(rule: &Rule, types: &mut HashMap<String, usize>, timezones: &mut Vec<Tz>) -> Self {
        let object_types = rule.object_types.iter().cloned();
        let mut of_rule: Vec<_> = object_types.map(|name| number(types, name)).collect();
        of_rule.sort_unstable();
        of_rule.dedup();
        let schedule = rule.schedule.as_ref();
        Self {
            risk_threshold: rule.risk_threshold,
            min_confidence: rule.min_confidence,
            bits: of_rule.iter().fold(0, |bits, number| bits | bit(*number)),
            types: of_rule.into(),
            schedule: schedule.map(|schedule| {
                let timezone = schedule.timezone();
                let known = timezones.iter().position(|known| *known == timezone);
                let number = known.unwrap_or_else(|| {
                    timezones.push(timezone);
                    timezones.len() - 1
                });
                (number, schedule.clone())
            }),
        }
    }
}

/// The number of something, from 0.
fn number<T: Eq + Hash>(numbers: &mut HashMap<T, usize>, of: T) -> usize {
    let next = numbers.len();
    *numbers.entry(of).or_insert(next)
}

/// Several numbers share a bit: where it is not set, the number is not there.
fn bit(number: usize) -> u64 {
    1 << (number % 64)
}

/// An event that is being judged, and what was found out for the first rule that asked.
struct Judging<'a> {
    index: &'a Index,
    facts: &'a Facts,
    /// Those of the camera.
    zones: &'a [Zone],
    /// The number of the type of each detection. Absent where no rule names it.
    types: Vec<Option<usize>>,
    /// The bits of all types.
    bits: u64,
    /// What the clock shows in each of the time zones.
    clocks: Vec<OnceCell<WallClock>>,
}

impl<'a> Judging<'a> {
    fn new(index: &'a Index, facts: &'a Facts) -> Self {
        let object_types = facts.detections.iter().map(|seen| &seen.object_type);
        let number = |name: &Option<String>| index.types.get(name.as_ref()?).copied();
        let types: Vec<_> = object_types.map(number).collect();
        Self {
            index,
            facts,
            zones: index.zones.of(&facts.camera_id),
            bits: types
                .iter()
                .flatten()
                .fold(0, |bits, number| bits | bit(*number)),
            types,
            clocks: vec![OnceCell::new(); index.timezones.len()],
        }
    }

    /// Whether the rule matches, what costs least first.
    fn judge(&self, candidate: &Candidate) -> Option<Match<'a>> {
        let Conditions {
            risk_threshold,
            min_confidence,
            bits,
            types,
            schedule,
        } = &self.index.conditions[candidate.rule];
        if let Some(threshold) = risk_threshold
            && self.facts.risk_score.is_none_or(|score| score < *threshold)
        {
            return None;
        }
        if !types.is_empty() && bits & self.bits == 0 {
            return None;
        }
        if let Some((timezone, schedule)) = schedule
            && !schedule.contains_clock(self.clock(*timezone))
        {
            return None;
        }
        let of_type = |number: &Option<usize>| {
            let listed = |number| bits & bit(number) != 0 && types.binary_search(&number).is_ok();
            types.is_empty() || number.is_some_and(listed)
        };
        let sure = |seen: &Seen| {
            min_confidence.is_none_or(|least| seen.confidence.is_some_and(|is| is >= least))
        };
        let detections = self.types.iter().zip(&self.facts.detections);
        let mut found = detections
            .filter(|(number, seen)| of_type(number) && sure(seen))
            .map(|(_, seen)| seen);
        let object_type = |seen: &'a Seen| seen.object_type.as_deref();
        if candidate.zones.is_empty() {
            let Some(first) = found.next() else {
                let asks = !types.is_empty() || min_confidence.is_some();
                return (!asks).then_some(Match {
                    rule: candidate.rule,
                    object_type: None,
                    zone_id: None,
                });
            };
            return Some(Match {
                rule: candidate.rule,
                object_type: object_type(first).or_else(|| found.find_map(object_type)),
                zone_id: None,
            });
        }
        candidate.zones.iter().find_map(|zone| {
            let mut inside = found.clone().filter(|seen| seen.is_in(self.zones, *zone));
            let first = inside.next()?;
            Some(Match {
                rule: candidate.rule,
                object_type: object_type(first).or_else(|| inside.find_map(object_type)),
                zone_id: Some(&self.zones[*zone].id),
            })
        })
    }

    fn clock(&self, timezone: usize) -> WallClock {
        let zone = self.index.timezones[timezone];
        *self.clocks[timezone].get_or_init(|| WallClock::at(self.facts.started_at, zone))
    }
}

#[cfg(test)]
mod tests;
