//! The rules of one moment. Sets of two moments share the rules that have not changed.

use std::{collections::HashMap, ops::Index, sync::Arc};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::live::Rule;
use crate::{
    entity::alert_rule,
    pb::{self, ChangeKind},
};

/// Slots without a rule that are kept beside as many as have one, so that small sets are not made anew all the time.
const SPARE: usize = 1_000;

/// The rules of one moment, oldest first. A rule keeps its slot for as long as it exists, enabled or not, so that what
/// refers to slots can be kept for the rules that have not changed.
#[derive(Debug, Default, Clone)]
pub struct RuleSet {
    slots: Vec<Slot>,
    by_id: HashMap<Uuid, usize>,
    /// Another one whenever rules have moved to other slots.
    order: Arc<()>,
}

#[derive(Debug, Clone)]
struct Slot {
    id: Uuid,
    created_at: DateTime<Utc>,
    version_id: i32,
    /// `None` if the rule is disabled, deleted, or cannot be used.
    rule: Option<Arc<Rule>>,
}

impl RuleSet {
    /// Compiles all rows.
    pub fn compile(rows: Vec<alert_rule::Model>) -> Self {
        let mut rules = Self::default();
        let mut slots: Vec<_> = rows.into_iter().map(Slot::of).collect();
        slots.sort_by_key(Slot::key);
        rules.fill(slots);
        rules
    }

    fn fill(&mut self, slots: Vec<Slot>) {
        self.by_id = slots
            .iter()
            .enumerate()
            .map(|(at, slot)| (slot.id, at))
            .collect();
        self.slots = slots;
        self.order = Arc::default();
    }

    /// This set with the rules of these ids as they are now: those without a row are gone.
    #[must_use]
    pub fn with(&self, ids: &[Uuid], rows: Vec<alert_rule::Model>) -> Self {
        let mut next = self.clone();
        let mut rows: HashMap<_, _> = rows.into_iter().map(|row| (row.id, row)).collect();
        let mut is_ordered = true;
        for id in ids {
            match (rows.remove(id), self.by_id.get(id)) {
                (Some(row), Some(at)) => next.slots[*at] = Slot::of(row),
                (Some(row), None) => {
                    let slot = Slot::of(row);
                    let last = next.slots.last().map(Slot::key);
                    is_ordered &= last.is_none_or(|last| last < slot.key());
                    next.by_id.insert(*id, next.slots.len());
                    next.slots.push(slot);
                }
                (None, Some(at)) => {
                    next.slots[*at].rule = None;
                    next.by_id.remove(id);
                }
                (None, None) => {}
            }
        }
        let gone = next.slots.len() - next.by_id.len();
        if !is_ordered || gone > next.by_id.len() + SPARE {
            let by_id = std::mem::take(&mut next.by_id);
            let slots = std::mem::take(&mut next.slots).into_iter().enumerate();
            let kept = slots.filter(|(at, slot)| by_id.get(&slot.id) == Some(at));
            let mut slots: Vec<_> = kept.map(|(_, slot)| slot).collect();
            slots.sort_by_key(Slot::key);
            next.fill(slots);
        }
        next
    }

    /// The rules that can be used, with their slots.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Rule)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(at, slot)| Some((at, &**slot.rule.as_ref()?)))
    }

    /// The rule of this id, if it can be used.
    pub fn get(&self, id: Uuid) -> Option<&Rule> {
        self.slots[*self.by_id.get(&id)?].rule.as_deref()
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The rule in a slot, if one that can be used is there.
    pub fn slot(&self, at: usize) -> Option<&Arc<Rule>> {
        self.slots.get(at)?.rule.as_ref()
    }

    /// The slots whose rules are not the same in a later set. `None` if rules have moved to other slots.
    pub fn changed(&self, later: &Self) -> Option<Vec<usize>> {
        if !Arc::ptr_eq(&self.order, &later.order) {
            return None;
        }
        let is_other = |at: &usize| match (self.slot(*at), later.slot(*at)) {
            (Some(one), Some(two)) => !Arc::ptr_eq(one, two),
            (one, two) => one.is_some() != two.is_some(),
        };
        Some((0..later.slots()).filter(is_other).collect())
    }

    /// The rule that a change is about, unless this set has it already.
    pub fn outdated_by(&self, change: &pb::AlertRuleChange) -> Option<Uuid> {
        let rule = change.alert_rule.as_ref()?;
        let id = Uuid::try_parse(&rule.id).ok()?;
        let known = self.by_id.get(&id).map(|at| &self.slots[*at]);
        let is_known = match known {
            Some(slot) => {
                change.kind() != ChangeKind::Deleted && slot.version_id >= rule.version_id
            }
            None => change.kind() == ChangeKind::Deleted,
        };
        (!is_known).then_some(id)
    }
}

/// Rules in this order.
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
        let rule = row.enabled.then(|| Rule::compile(row));
        let rule = match rule.transpose() {
            Ok(rule) => rule,
            // Written past our checks. One bad rule must not stop the others, and must not fire.
            Err(error) => {
                tracing::error!(alert_rule.id = %id, %error, "an alert rule cannot be used");
                None
            }
        };
        Self {
            id,
            created_at,
            version_id,
            rule: rule.map(Arc::new),
        }
    }

    fn key(&self) -> (DateTime<Utc>, Uuid) {
        (self.created_at, self.id)
    }
}

/// The rule in a slot, in which there must be one that can be used.
impl Index<usize> for RuleSet {
    type Output = Rule;

    fn index(&self, at: usize) -> &Rule {
        self.slot(at).expect("a slot with a rule")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::engine::judge::tests::row;

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
        // One that is disabled keeps its slot, and comes back to it.
        let disabled = alert_rule::Model {
            enabled: false,
            ..rule(2, 20)
        };
        let without = set.with(&[id(2)], vec![disabled]);
        assert_eq!(
            (ids(&without), set.changed(&without)),
            (vec![1, 3], Some(vec![1]))
        );
        assert!(Arc::ptr_eq(set.slot(0).unwrap(), without.slot(0).unwrap()));
        let back = without.with(&[id(2)], vec![rule(2, 20)]);
        assert_eq!(
            (ids(&back), without.changed(&back)),
            (vec![1, 2, 3], Some(vec![1]))
        );
        // A new one comes last, an old one in its place, and one that is gone is gone.
        let more = back.with(&[id(4), id(1)], vec![rule(4, 40)]);
        assert_eq!(
            (ids(&more), back.changed(&more)),
            (vec![2, 3, 4], Some(vec![0, 3]))
        );
        let older = more.with(&[id(5)], vec![rule(5, 25)]);
        assert_eq!(
            (ids(&older), more.changed(&older)),
            (vec![2, 5, 3, 4], None)
        );
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
        assert!(set.slots() <= SPARE + 1, "{}", set.slots());
    }
}
