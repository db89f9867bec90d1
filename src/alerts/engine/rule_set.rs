//! Snapshot of the alert rules. Successive snapshots share unchanged rules.

use std::{collections::HashMap, ops::Index, sync::Arc};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::rule::Rule;
use crate::{
    entity::alert_rule,
    pb::{self, ChangeKind},
};

/// Number of empty slots that are tolerated in addition to one per rule. Avoids frequent compaction
/// of small sets.
const MAX_SPARE_SLOTS: usize = 1_000;

/// Rules of one snapshot, oldest first. A rule keeps its slot while it exists, enabled or not, so
/// that derived data can refer to slots.
#[derive(Debug, Default, Clone)]
pub struct RuleSet {
    slots: Vec<Slot>,
    by_id: HashMap<Uuid, usize>,
    /// Identity of the slot order. Replaced when rules move to other slots.
    order: Arc<()>,
}

#[derive(Debug, Clone)]
struct Slot {
    id: Uuid,
    created_at: DateTime<Utc>,
    version_id: i32,
    /// `None` if the rule is disabled, deleted or invalid.
    rule: Option<Arc<Rule>>,
}

impl RuleSet {
    /// Compiles rows into a snapshot.
    pub fn compile(rows: Vec<alert_rule::Model>) -> Self {
        let mut rules = Self::default();
        let mut slots: Vec<_> = rows.into_iter().map(Slot::of).collect();
        slots.sort_by_key(Slot::key);
        rules.fill(slots);
        rules
    }

    fn fill(&mut self, slots: Vec<Slot>) {
        self.by_id = slots.iter().enumerate().map(|(position, slot)| (slot.id, position)).collect();
        self.slots = slots;
        self.order = Arc::default();
    }

    /// Returns a snapshot with the given rules replaced. Ids without a row are deleted.
    #[must_use]
    pub fn with(&self, ids: &[Uuid], rows: Vec<alert_rule::Model>) -> Self {
        let mut next = self.clone();
        let mut rows: HashMap<_, _> = rows.into_iter().map(|row| (row.id, row)).collect();
        let mut is_ordered = true;
        for id in ids {
            match (rows.remove(id), self.by_id.get(id)) {
                (Some(row), Some(position)) => next.slots[*position] = Slot::of(row),
                (Some(row), None) => {
                    let slot = Slot::of(row);
                    let last = next.slots.last().map(Slot::key);
                    is_ordered &= last.is_none_or(|last| last < slot.key());
                    next.by_id.insert(*id, next.slots.len());
                    next.slots.push(slot);
                }
                (None, Some(position)) => {
                    next.slots[*position].rule = None;
                    next.by_id.remove(id);
                }
                (None, None) => {}
            }
        }
        let empty_slots = next.slots.len() - next.by_id.len();
        if !is_ordered || empty_slots > next.by_id.len() + MAX_SPARE_SLOTS {
            let by_id = std::mem::take(&mut next.by_id);
            let mut slots: Vec<_> = std::mem::take(&mut next.slots)
                .into_iter()
                .enumerate()
                .filter(|(position, slot)| by_id.get(&slot.id) == Some(position))
                .map(|(_, slot)| slot)
                .collect();
            slots.sort_by_key(Slot::key);
            next.fill(slots);
        }
        next
    }

    /// Iterates over usable rules with slots.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Rule)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(position, slot)| Some((position, &**slot.rule.as_ref()?)))
    }

    /// Returns the usable rule with an id.
    pub fn get(&self, id: Uuid) -> Option<&Rule> {
        self.slots[*self.by_id.get(&id)?].rule.as_deref()
    }

    /// Number of slots, including empty slots.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Returns the usable rule in a slot.
    pub fn slot(&self, position: usize) -> Option<&Arc<Rule>> {
        self.slots.get(position)?.rule.as_ref()
    }

    /// Returns the slots whose rules differ in a later snapshot. `None` if rules moved to other
    /// slots.
    pub fn changed(&self, later: &Self) -> Option<Vec<usize>> {
        if !Arc::ptr_eq(&self.order, &later.order) {
            return None;
        }
        let differs = |position: &usize| match (self.slot(*position), later.slot(*position)) {
            (Some(one), Some(two)) => !Arc::ptr_eq(one, two),
            (one, two) => one.is_some() != two.is_some(),
        };
        Some((0..later.slots()).filter(differs).collect())
    }

    /// Returns the id of the rule in a change, unless this snapshot already includes the change.
    pub fn outdated_by(&self, change: &pb::AlertRuleChange) -> Option<Uuid> {
        let rule = change.alert_rule.as_ref()?;
        let id = Uuid::try_parse(&rule.id).ok()?;
        let known_slot = self.by_id.get(&id).map(|position| &self.slots[*position]);
        let is_known = match known_slot {
            Some(slot) => change.kind() != ChangeKind::Deleted && slot.version_id >= rule.version_id,
            None => change.kind() == ChangeKind::Deleted,
        };
        (!is_known).then_some(id)
    }
}

/// Builds a snapshot in iteration order, for tests and benchmarks.
impl FromIterator<Rule> for RuleSet {
    fn from_iter<I: IntoIterator<Item = Rule>>(rules: I) -> Self {
        let slot = |rule: Rule| Slot {
            id: rule.id,
            created_at: DateTime::UNIX_EPOCH,
            version_id: 1,
            rule: Some(Arc::new(rule)),
        };
        let mut set = Self::default();
        set.fill(rules.into_iter().map(slot).collect());
        set
    }
}

impl Slot {
    fn of(row: alert_rule::Model) -> Self {
        let (id, created_at, version_id) = (row.id, row.created_at, row.version_id);
        let compiled = row.enabled.then(|| Rule::compile(row));
        let rule = match compiled.transpose() {
            Ok(rule) => rule,
            // Another program wrote the row past the API's validation. One invalid rule must not
            // stop the other rules, and must not fire.
            Err(error) => {
                tracing::error!(alert_rule.id = %id, %error, "invalid alert rule is ignored");
                None
            }
        };
        Self { id, created_at, version_id, rule: rule.map(Arc::new) }
    }

    fn key(&self) -> (DateTime<Utc>, Uuid) {
        (self.created_at, self.id)
    }
}

/// Returns the rule in a slot. Panics if the slot has no usable rule.
impl Index<usize> for RuleSet {
    type Output = Rule;

    fn index(&self, position: usize) -> &Rule {
        self.slot(position).expect("a slot with a rule")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::engine::evaluate::tests::row;

    fn rule(id: u128, seconds: i64) -> alert_rule::Model {
        alert_rule::Model {
            id: Uuid::from_u128(id),
            created_at: DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(seconds),
            ..row()
        }
    }

    fn ids(rules: &RuleSet) -> Vec<u128> {
        rules.iter().map(|(_, rule)| rule.id.as_u128()).collect()
    }

    #[test]
    fn a_set_with_changes_is_the_set_of_all_rows() {
        let set = RuleSet::compile(vec![rule(2, 20), rule(1, 10), rule(3, 30)]);
        assert_eq!(ids(&set), [1, 2, 3]);
        let id = Uuid::from_u128;
        // A disabled rule keeps its slot for the time after enabling.
        let disabled = alert_rule::Model { enabled: false, ..rule(2, 20) };
        let without = set.with(&[id(2)], vec![disabled]);
        assert_eq!((ids(&without), set.changed(&without)), (vec![1, 3], Some(vec![1])));
        assert!(Arc::ptr_eq(set.slot(0).unwrap(), without.slot(0).unwrap()));
        let back = without.with(&[id(2)], vec![rule(2, 20)]);
        assert_eq!((ids(&back), without.changed(&back)), (vec![1, 2, 3], Some(vec![1])));
        // New rules are appended, older rules are inserted in order, and deleted rules disappear.
        let more = back.with(&[id(4), id(1)], vec![rule(4, 40)]);
        assert_eq!((ids(&more), back.changed(&more)), (vec![2, 3, 4], Some(vec![0, 3])));
        let older = more.with(&[id(5)], vec![rule(5, 25)]);
        assert_eq!((ids(&older), more.changed(&older)), (vec![2, 5, 3, 4], None));
        assert_eq!(older.get(id(5)).map(|rule| rule.id), Some(id(5)));
        assert!(older.get(id(1)).is_none());
    }

    #[test]
    fn slots_of_deleted_rules_are_given_up() {
        let mut set = RuleSet::compile(Vec::new());
        for number in 0..2_500 {
            let id = Uuid::from_u128(number);
            let seconds = i64::try_from(number).unwrap();
            set = set.with(&[id], vec![rule(number, seconds)]);
            set = set.with(&[id], Vec::new());
        }
        assert!(set.slots() <= MAX_SPARE_SLOTS + 1, "{}", set.slots());
    }
}
