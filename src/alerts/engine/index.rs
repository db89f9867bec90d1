//! The rules arranged for speed: only those that can concern an event are looked at, by comparing
//! numbers; nothing is said of those that do not match.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use super::{
    judge::{Facts, Seen},
    live::Rule,
    rule_set::RuleSet,
    schedule::{Schedule, WallClock},
};
use crate::{
    time_zones::Tz,
    zones::{Zone, ZoneSet},
};

/// Changes that are worked into an index. After more it is cheaper to make it anew.
const CHANGES: usize = 64;

/// The rules and zones of one moment. Both are replaced independently, and an index with them. Indexes of two moments
/// share what has not changed.
#[derive(Debug, Default, Clone)]
pub struct Index {
    rules: Arc<RuleSet>,
    zones: Arc<ZoneSet>,
    /// What the rule in each slot asks for.
    conditions: Vec<Option<Arc<Conditions>>>,
    /// Those that can match events of every camera, in the order of the rules.
    everywhere: Arc<Vec<Candidate>>,
    /// Those that can match events of a camera only as they name it or zones of it, likewise.
    by_camera: HashMap<Arc<str>, Arc<Vec<Candidate>>>,
    /// The types that rules name, numbered.
    types: Arc<HashMap<String, usize>>,
    /// The time zones of their schedules, numbered.
    timezones: Arc<Vec<Tz>>,
    /// Changes that were worked in since it was made anew. Types and time zones that no rule names any more stay.
    steps: usize,
}

/// A rule that can match events of some camera.
#[derive(Debug, Clone)]
struct Candidate {
    /// Its slot.
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

/// A rule that matches; see [`Verdict::Matches`](super::judge::Verdict::Matches).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match<'a> {
    /// The slot of the rule.
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
        index.conditions.resize(index.rules.slots(), None);
        let rules = index.rules.clone();
        // Which rules name a zone.
        let mut naming: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, rule) in rules.iter() {
            index.add(at, rule);
            for zone_id in &rule.zone_ids {
                naming.entry(zone_id).or_default().push(at);
            }
        }
        if !naming.is_empty() {
            let zones = index.zones.clone();
            for (camera_id, zones) in zones.cameras() {
                index.add_by_zones(camera_id, zones, |zone_id| {
                    naming.get(zone_id).map(Vec::as_slice).unwrap_or_default()
                });
            }
        }
        index
    }

    /// The index of later rules and zones, which is the same as a new one of these.
    #[must_use]
    pub fn next(&self, rules: Arc<RuleSet>, zones: Arc<ZoneSet>) -> Self {
        let changed = self.rules.changed(&rules);
        let Some(changed) = changed.filter(|changed| changed.len() <= CHANGES) else {
            return Self::new(rules, zones);
        };
        let steps = self.steps + changed.len();
        let later = zones.clone();
        let cameras = self.zones.changed(&later);
        if cameras.len() > CHANGES || steps > rules.slots() + CHANGES {
            return Self::new(rules, zones);
        }
        let mut next = Self {
            rules,
            steps,
            ..self.clone()
        };
        next.conditions.resize(next.rules.slots(), None);
        // First the rules with the zones that there were, then those.
        for at in changed {
            if let Some(rule) = self.rules.slot(at) {
                next.remove(at, rule);
            }
            if let Some(rule) = next.rules.slot(at).cloned() {
                next.add(at, &rule);
                next.add_to_zones(at, &rule);
            }
        }
        for camera_id in cameras {
            next.change_zones(camera_id, later.of(camera_id));
        }
        next.zones = zones;
        next
    }

    /// Adds a rule to the cameras that it names, or to all. One that names zones belongs to those of the zones.
    fn add(&mut self, at: usize, rule: &Rule) {
        let conditions = Conditions::of(rule, &mut self.types, &mut self.timezones);
        self.conditions[at] = Some(Arc::new(conditions));
        if !rule.zone_ids.is_empty() {
            return;
        }
        let candidate = || Candidate {
            rule: at,
            zones: Box::default(),
        };
        if rule.camera_ids.is_empty() {
            insert(Arc::make_mut(&mut self.everywhere), candidate());
        }
        for camera_id in &rule.camera_ids {
            insert(self.camera(camera_id), candidate());
        }
    }

    /// Adds a rule that names zones to the cameras that have these.
    fn add_to_zones(&mut self, at: usize, rule: &Rule) {
        if rule.zone_ids.is_empty() {
            return;
        }
        let zones = self.zones.clone();
        for (camera_id, zones) in zones.cameras() {
            if !rule.camera_ids.is_empty() && !rule.camera_ids.contains(camera_id) {
                continue;
            }
            let named = zones.iter().enumerate();
            let named = named.filter(|(_, zone)| rule.zone_ids.contains(&zone.id));
            let zones: Box<[usize]> = named.map(|(place, _)| place).collect();
            if !zones.is_empty() {
                insert(self.camera(camera_id), Candidate { rule: at, zones });
            }
        }
    }

    fn remove(&mut self, at: usize, rule: &Rule) {
        self.conditions[at] = None;
        if !rule.zone_ids.is_empty() {
            let zones = self.zones.clone();
            for (camera_id, zones) in zones.cameras() {
                if zones.iter().any(|zone| rule.zone_ids.contains(&zone.id)) {
                    self.remove_from(camera_id, |candidate| candidate.rule == at);
                }
            }
            return;
        }
        if rule.camera_ids.is_empty() {
            Arc::make_mut(&mut self.everywhere).retain(|candidate| candidate.rule != at);
        }
        for camera_id in &rule.camera_ids {
            self.remove_from(camera_id, |candidate| candidate.rule == at);
        }
    }

    fn remove_from(&mut self, camera_id: &str, is: impl Fn(&Candidate) -> bool) {
        if let Some(candidates) = self.by_camera.get_mut(camera_id) {
            let candidates = Arc::make_mut(candidates);
            candidates.retain(|candidate| !is(candidate));
            if candidates.is_empty() {
                self.by_camera.remove(camera_id);
            }
        }
    }

    /// Gives a camera other zones.
    fn change_zones(&mut self, camera_id: &str, zones: &[Zone]) {
        self.remove_from(camera_id, |candidate| !candidate.zones.is_empty());
        let rules = self.rules.clone();
        let of_camera: HashSet<_> = zones.iter().map(|zone| zone.id.as_str()).collect();
        let mut naming: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, rule) in rules.iter() {
            for zone_id in &rule.zone_ids {
                if of_camera.contains(zone_id.as_str()) {
                    naming.entry(zone_id).or_default().push(at);
                }
            }
        }
        self.add_by_zones(camera_id, zones, |zone_id| {
            naming.get(zone_id).map(Vec::as_slice).unwrap_or_default()
        });
    }

    /// Adds the rules that name zones of a camera to it.
    fn add_by_zones<'a>(
        &mut self,
        camera_id: &str,
        zones: &[Zone],
        naming: impl Fn(&str) -> &'a [usize],
    ) {
        let mut asked: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (place, zone) in zones.iter().enumerate() {
            for at in naming(&zone.id) {
                let camera_ids = &self.rules[*at].camera_ids;
                if camera_ids.is_empty() || camera_ids.contains(camera_id) {
                    asked.entry(*at).or_default().push(place);
                }
            }
        }
        if asked.is_empty() {
            return;
        }
        let asked = asked.into_iter().map(|(rule, zones)| Candidate {
            rule,
            zones: zones.into(),
        });
        let camera = self.camera(camera_id);
        camera.extend(asked);
        camera.sort_unstable_by_key(|candidate| candidate.rule);
    }

    /// The candidates of a camera, to be changed.
    fn camera(&mut self, camera_id: &str) -> &mut Vec<Candidate> {
        // Most cameras are there already, and many rules may name many.
        if !self.by_camera.contains_key(camera_id) {
            self.by_camera.insert(camera_id.into(), Arc::default());
        }
        let candidates = self.by_camera.get_mut(camera_id);
        Arc::make_mut(candidates.expect("a camera that was added"))
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
        let of_camera = self.by_camera.get(facts.camera_id.as_str());
        let of_camera = of_camera
            .map(|camera| camera.as_slice())
            .unwrap_or_default();
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
    fn of(
        rule: &Rule,
        types: &mut Arc<HashMap<String, usize>>,
        timezones: &mut Arc<Vec<Tz>>,
    ) -> Self {
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
                    Arc::make_mut(timezones).push(timezone);
                    timezones.len() - 1
                });
                (number, schedule.clone())
            }),
        }
    }
}

/// The number of something, from 0. Numbers are shared with other indexes until there is a new one.
fn number<T: Eq + Hash + Clone>(numbers: &mut Arc<HashMap<T, usize>>, of: T) -> usize {
    if let Some(number) = numbers.get(&of) {
        return *number;
    }
    let next = numbers.len();
    Arc::make_mut(numbers).insert(of, next);
    next
}

/// Puts a candidate among others in the order of the rules.
fn insert(candidates: &mut Vec<Candidate>, candidate: Candidate) {
    let place = candidates.partition_point(|other| other.rule < candidate.rule);
    candidates.insert(place, candidate);
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
        } = self.index.conditions[candidate.rule].as_deref()?;
        if let Some(threshold) = risk_threshold
            && self.facts.risk_score.is_none_or(|score| score < *threshold)
        {
            return None;
        }
        if !types.is_empty() && bits & self.bits == 0 {
            return None;
        }
        if let Some((timezone, schedule)) = schedule
            && !schedule.contains_clock(self.clock(*timezone, schedule.timezone()))
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

    fn clock(&self, number: usize, timezone: Tz) -> WallClock {
        *self.clocks[number].get_or_init(|| WallClock::at(self.facts.started_at, timezone))
    }
}

#[cfg(test)]
mod tests;
