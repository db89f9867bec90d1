//! Index of alert rules by camera and condition. Finds the rules that match an event without
//! evaluating every rule.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use super::{
    evaluate::{DetectionFacts, EventFacts},
    rule::Rule,
    rule_set::RuleSet,
    schedule::{Schedule, WallClock},
};
use crate::{
    time_zones::Tz,
    zones::{Zone, ZoneSet},
};

/// Largest number of changes that are applied to an existing index. A rebuild is cheaper for more
/// changes.
const MAX_INCREMENTAL_CHANGES: usize = 64;

/// Index over one snapshot of rules and zones. Rules and zones are replaced independently, each
/// time with a new index. Successive indexes share unchanged parts.
#[derive(Debug, Default, Clone)]
pub struct Index {
    rules: Arc<RuleSet>,
    zones: Arc<ZoneSet>,
    /// Conditions of each rule by slot. `None` for a slot without a usable rule.
    conditions: Vec<Option<Arc<Conditions>>>,
    /// Rules without cameras and zones, in rule order.
    unrestricted: Arc<Vec<Candidate>>,
    /// Rules restricted to a camera or to zones of a camera, in rule order.
    by_camera: HashMap<Arc<str>, Arc<Vec<Candidate>>>,
    /// Number of each object type that a rule names.
    type_numbers: Arc<HashMap<String, usize>>,
    /// Time zones of all schedules. The position is the number of the time zone.
    timezones: Arc<Vec<Tz>>,
    /// Changes applied since the last rebuild. Unused types and time zones remain until a rebuild.
    changes_since_rebuild: usize,
}

/// Rule that can match events of a camera.
#[derive(Debug, Clone)]
struct Candidate {
    /// Slot of the rule.
    rule: usize,
    /// Positions of the rule's zones among the zones of the camera, ascending. Empty if the rule
    /// names no zones.
    zones: Box<[usize]>,
}

/// Conditions of a rule other than cameras and zones.
#[derive(Debug)]
struct Conditions {
    risk_threshold: Option<i32>,
    min_confidence: Option<f64>,
    /// Bloom bits of `types`, see [`type_bit`].
    type_bits: u64,
    /// Numbers of the object types, sorted. Empty matches any type.
    type_numbers: Box<[usize]>,
    /// Schedule and the number of the time zone.
    schedule: Option<(usize, Schedule)>,
}

/// Rule that matches an event, see [`Verdict::Matches`](super::evaluate::Verdict::Matches).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match<'a> {
    /// Slot of the rule.
    pub rule: usize,
    pub object_type: Option<&'a str>,
    pub zone_id: Option<&'a str>,
}

impl Index {
    /// Builds an index of all rules and zones.
    pub fn new(rules: Arc<RuleSet>, zones: Arc<ZoneSet>) -> Self {
        let mut index = Self { rules, zones, ..Self::default() };
        index.conditions.resize(index.rules.slots(), None);
        let rules = index.rules.clone();
        // Slots of the rules that name each zone.
        let mut rules_by_zone: HashMap<&str, Vec<usize>> = HashMap::new();
        for (slot, rule) in rules.iter() {
            index.add(slot, rule);
            for zone_id in &rule.zone_ids {
                rules_by_zone.entry(zone_id).or_default().push(slot);
            }
        }
        if !rules_by_zone.is_empty() {
            let zones = index.zones.clone();
            for (camera_id, zones) in zones.cameras() {
                index.add_by_zones(camera_id, zones, |zone_id| {
                    rules_by_zone.get(zone_id).map(Vec::as_slice).unwrap_or_default()
                });
            }
        }
        index
    }

    /// Returns the index of a later snapshot, equal to a newly built index. Small changes are
    /// applied incrementally.
    #[must_use]
    pub fn next(&self, rules: Arc<RuleSet>, zones: Arc<ZoneSet>) -> Self {
        let changed = self.rules.changed(&rules);
        let Some(changed_slots) = changed.filter(|slots| slots.len() <= MAX_INCREMENTAL_CHANGES) else {
            return Self::new(rules, zones);
        };
        let changes_since_rebuild = self.changes_since_rebuild + changed_slots.len();
        let next_zones = zones.clone();
        let changed_cameras = self.zones.changed(&next_zones);
        if changed_cameras.len() > MAX_INCREMENTAL_CHANGES
            || changes_since_rebuild > rules.slots() + MAX_INCREMENTAL_CHANGES
        {
            return Self::new(rules, zones);
        }
        let mut next = Self { rules, changes_since_rebuild, ..self.clone() };
        next.conditions.resize(next.rules.slots(), None);
        // Changed rules are indexed with the old zones first. Changed zones are applied afterwards
        // to all rules.
        for slot in changed_slots {
            if let Some(rule) = self.rules.slot(slot) {
                next.remove(slot, rule);
            }
            if let Some(rule) = next.rules.slot(slot).cloned() {
                next.add(slot, &rule);
                next.add_to_zones(slot, &rule);
            }
        }
        for camera_id in changed_cameras {
            next.change_zones(camera_id, next_zones.of(camera_id));
        }
        next.zones = zones;
        next
    }

    /// Adds a rule to the named cameras, or to all cameras. Skips rules with zones, see
    /// [`Self::add_to_zones`].
    fn add(&mut self, slot: usize, rule: &Rule) {
        let conditions = Conditions::of(rule, &mut self.type_numbers, &mut self.timezones);
        self.conditions[slot] = Some(Arc::new(conditions));
        if !rule.zone_ids.is_empty() {
            return;
        }
        let candidate = || Candidate { rule: slot, zones: Box::default() };
        if rule.camera_ids.is_empty() {
            insert_ordered(Arc::make_mut(&mut self.unrestricted), candidate());
        }
        for camera_id in &rule.camera_ids {
            insert_ordered(self.camera_candidates(camera_id), candidate());
        }
    }

    /// Adds a rule with zones to the cameras of the zones.
    fn add_to_zones(&mut self, slot: usize, rule: &Rule) {
        if rule.zone_ids.is_empty() {
            return;
        }
        let zones = self.zones.clone();
        for (camera_id, zones) in zones.cameras() {
            if !rule.camera_ids.is_empty() && !rule.camera_ids.contains(camera_id) {
                continue;
            }
            let zones: Box<[usize]> = zones
                .iter()
                .enumerate()
                .filter(|(_, zone)| rule.zone_ids.contains(&zone.id))
                .map(|(position, _)| position)
                .collect();
            if !zones.is_empty() {
                insert_ordered(self.camera_candidates(camera_id), Candidate { rule: slot, zones });
            }
        }
    }

    fn remove(&mut self, slot: usize, rule: &Rule) {
        self.conditions[slot] = None;
        if !rule.zone_ids.is_empty() {
            let zones = self.zones.clone();
            for (camera_id, zones) in zones.cameras() {
                if zones.iter().any(|zone| rule.zone_ids.contains(&zone.id)) {
                    self.remove_from(camera_id, |candidate| candidate.rule == slot);
                }
            }
            return;
        }
        if rule.camera_ids.is_empty() {
            Arc::make_mut(&mut self.unrestricted).retain(|candidate| candidate.rule != slot);
        }
        for camera_id in &rule.camera_ids {
            self.remove_from(camera_id, |candidate| candidate.rule == slot);
        }
    }

    fn remove_from(&mut self, camera_id: &str, is_removed: impl Fn(&Candidate) -> bool) {
        if let Some(candidates) = self.by_camera.get_mut(camera_id) {
            let candidates = Arc::make_mut(candidates);
            candidates.retain(|candidate| !is_removed(candidate));
            if candidates.is_empty() {
                self.by_camera.remove(camera_id);
            }
        }
    }

    /// Replaces the zones of a camera.
    fn change_zones(&mut self, camera_id: &str, zones: &[Zone]) {
        self.remove_from(camera_id, |candidate| !candidate.zones.is_empty());
        let rules = self.rules.clone();
        let zone_ids: HashSet<_> = zones.iter().map(|zone| zone.id.as_str()).collect();
        let mut rules_by_zone: HashMap<&str, Vec<usize>> = HashMap::new();
        for (slot, rule) in rules.iter() {
            for zone_id in &rule.zone_ids {
                if zone_ids.contains(zone_id.as_str()) {
                    rules_by_zone.entry(zone_id).or_default().push(slot);
                }
            }
        }
        self.add_by_zones(camera_id, zones, |zone_id| {
            rules_by_zone.get(zone_id).map(Vec::as_slice).unwrap_or_default()
        });
    }

    /// Adds the rules that name zones of a camera to the candidates of the camera.
    fn add_by_zones<'a>(&mut self, camera_id: &str, zones: &[Zone], rules_by_zone: impl Fn(&str) -> &'a [usize]) {
        let mut zones_by_rule: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (position, zone) in zones.iter().enumerate() {
            for slot in rules_by_zone(&zone.id) {
                let camera_ids = &self.rules[*slot].camera_ids;
                if camera_ids.is_empty() || camera_ids.contains(camera_id) {
                    zones_by_rule.entry(*slot).or_default().push(position);
                }
            }
        }
        if zones_by_rule.is_empty() {
            return;
        }
        let candidates = zones_by_rule.into_iter().map(|(rule, zones)| Candidate { rule, zones: zones.into() });
        let camera_candidates = self.camera_candidates(camera_id);
        camera_candidates.extend(candidates);
        camera_candidates.sort_unstable_by_key(|candidate| candidate.rule);
    }

    /// Returns the candidates of a camera for modification.
    fn camera_candidates(&mut self, camera_id: &str) -> &mut Vec<Candidate> {
        // `entry` would allocate a key for every rule, although most cameras are already present.
        if !self.by_camera.contains_key(camera_id) {
            self.by_camera.insert(camera_id.into(), Arc::default());
        }
        let candidates = self.by_camera.get_mut(camera_id);
        Arc::make_mut(candidates.expect("a camera that was added"))
    }

    /// Returns true if the index was built from exactly this snapshot of rules and zones.
    pub fn is_built_from(&self, rules: &Arc<RuleSet>, zones: &Arc<ZoneSet>) -> bool {
        Arc::ptr_eq(&self.rules, rules) && Arc::ptr_eq(&self.zones, zones)
    }

    /// Returns the indexed rules.
    pub fn rules(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// Returns the indexed zones. [`EventFacts`] must refer to the same zones.
    pub fn zones(&self) -> &Arc<ZoneSet> {
        &self.zones
    }

    /// Returns the rules that match an event, in rule order.
    pub fn matches<'a>(&'a self, facts: &'a EventFacts) -> Vec<Match<'a>> {
        let evaluation = Evaluation::new(self, facts);
        let camera_candidates =
            self.by_camera.get(facts.camera_id.as_str()).map(|candidates| candidates.as_slice()).unwrap_or_default();
        let find_match = |candidate| evaluation.find_match(candidate);
        let mut matches: Vec<_> = self.unrestricted.iter().filter_map(find_match).collect();
        let unrestricted_matches = matches.len();
        matches.extend(camera_candidates.iter().filter_map(find_match));
        if unrestricted_matches > 0 && matches.len() > unrestricted_matches {
            matches.sort_unstable_by_key(|rule_match| rule_match.rule);
        }
        matches
    }
}

impl Conditions {
    fn of(rule: &Rule, type_numbers: &mut Arc<HashMap<String, usize>>, timezones: &mut Arc<Vec<Tz>>) -> Self {
        let object_types = rule.object_types.iter().cloned();
        let mut numbers: Vec<_> = object_types.map(|name| number(type_numbers, name)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let schedule = rule.schedule.as_ref();
        Self {
            risk_threshold: rule.risk_threshold,
            min_confidence: rule.min_confidence,
            type_bits: numbers.iter().fold(0, |type_bits, number| type_bits | type_bit(*number)),
            type_numbers: numbers.into(),
            schedule: schedule.map(|schedule| {
                let timezone = schedule.timezone();
                let known_number = timezones.iter().position(|known| *known == timezone);
                let number = known_number.unwrap_or_else(|| {
                    Arc::make_mut(timezones).push(timezone);
                    timezones.len() - 1
                });
                (number, schedule.clone())
            }),
        }
    }
}

/// Returns the number of a value and assigns the next free number to a new value. A map shared with
/// other indexes is cloned before the first change.
fn number<T: Eq + Hash + Clone>(numbers: &mut Arc<HashMap<T, usize>>, value: T) -> usize {
    if let Some(number) = numbers.get(&value) {
        return *number;
    }
    let next = numbers.len();
    Arc::make_mut(numbers).insert(value, next);
    next
}

/// Inserts a candidate in rule order.
fn insert_ordered(candidates: &mut Vec<Candidate>, candidate: Candidate) {
    let position = candidates.partition_point(|other| other.rule < candidate.rule);
    candidates.insert(position, candidate);
}

/// Bloom bit of a type number. Several numbers share a bit: an unset bit proves the absence of the
/// type, a set bit does not prove the presence.
fn type_bit(number: usize) -> u64 {
    1 << (number % 64)
}

/// Evaluation of one event. Values that several rules need are computed once.
struct Evaluation<'a> {
    index: &'a Index,
    facts: &'a EventFacts,
    /// Zones of the camera.
    zones: &'a [Zone],
    /// Type number of each detection. `None` for a type that no rule names.
    type_numbers: Vec<Option<usize>>,
    /// Bloom bits of all detected types.
    type_bits: u64,
    /// Local time of the event by number of the time zone, computed on first use.
    clocks: Vec<OnceCell<WallClock>>,
}

impl<'a> Evaluation<'a> {
    fn new(index: &'a Index, facts: &'a EventFacts) -> Self {
        let object_types = facts.detections.iter().map(|detection| &detection.object_type);
        let number = |name: &Option<String>| index.type_numbers.get(name.as_ref()?).copied();
        let type_numbers: Vec<_> = object_types.map(number).collect();
        Self {
            index,
            facts,
            zones: index.zones.of(&facts.camera_id),
            type_bits: type_numbers.iter().flatten().fold(0, |type_bits, number| type_bits | type_bit(*number)),
            type_numbers,
            clocks: vec![OnceCell::new(); index.timezones.len()],
        }
    }

    /// Returns the match of a rule, if any. Cheap conditions come first.
    fn find_match(&self, candidate: &Candidate) -> Option<Match<'a>> {
        let Conditions { risk_threshold, min_confidence, type_bits, type_numbers, schedule } =
            self.index.conditions[candidate.rule].as_deref()?;
        if let Some(threshold) = risk_threshold
            && self.facts.risk_score.is_none_or(|score| score < *threshold)
        {
            return None;
        }
        if !type_numbers.is_empty() && type_bits & self.type_bits == 0 {
            return None;
        }
        if let Some((timezone, schedule)) = schedule
            && !schedule.contains_clock(self.clock(*timezone, schedule.timezone()))
        {
            return None;
        }
        let has_type = |number: &Option<usize>| {
            let listed = |number| type_bits & type_bit(number) != 0 && type_numbers.binary_search(&number).is_ok();
            type_numbers.is_empty() || number.is_some_and(listed)
        };
        let is_confident = |detection: &DetectionFacts| {
            min_confidence.is_none_or(|minimum| detection.confidence.is_some_and(|confidence| confidence >= minimum))
        };
        let detections = self.type_numbers.iter().zip(&self.facts.detections);
        let mut matching = detections
            .filter(|(number, detection)| has_type(number) && is_confident(detection))
            .map(|(_, detection)| detection);
        let object_type = |detection: &'a DetectionFacts| detection.object_type.as_deref();
        if candidate.zones.is_empty() {
            let Some(first) = matching.next() else {
                let needs_detection = !type_numbers.is_empty() || min_confidence.is_some();
                return (!needs_detection).then_some(Match { rule: candidate.rule, object_type: None, zone_id: None });
            };
            return Some(Match {
                rule: candidate.rule,
                object_type: object_type(first).or_else(|| matching.find_map(object_type)),
                zone_id: None,
            });
        }
        candidate.zones.iter().find_map(|zone| {
            let mut inside = matching.clone().filter(|detection| detection.is_in(self.zones, *zone));
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
