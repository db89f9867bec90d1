//! Partitions with waiting jobs, as known to the dispatcher. The state is a hint; the table decides.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::jobs::partition::{Partition, QueuePosition};

/// Maximum number of partitions served by one claim.
pub(crate) const MAX_PARTITIONS_PER_CLAIM: usize = 100;

/// Number of known partitions above which empty partitions are forgotten.
const MAX_KNOWN_PARTITIONS: usize = 10_000;

/// Delay before a partition with exhausted limits is tried again without a notification.
const BLOCKED_RETRY: TimeDelta = TimeDelta::milliseconds(500);

/// Known state of a partition.
#[derive(Debug, Clone, Default)]
struct PartitionState {
    /// Position up to which no job waits. Claims start behind the floor: on PostgreSQL, claimed jobs remain as dead
    /// rows for as long as any transaction holds a snapshot.
    floor: Option<QueuePosition>,
    /// Earliest time at which a job is, or may be, due. `None` for an empty partition.
    due: Option<DateTime<Utc>>,
    /// Turn of the last claim. Partitions with the lowest turn are served first.
    turn: u64,
}

/// Partitions known to the dispatcher.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    states: HashMap<Partition, PartitionState>,
    turn: u64,
}

/// Partition selected for a claim.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    pub partition: Partition,
    pub floor: Option<QueuePosition>,
    pub max_jobs: usize,
}

impl Partitions {
    /// Records a waiting job. A job before the floor moves the floor back.
    pub(crate) fn record_waiting(&mut self, partition: Partition, position: QueuePosition) {
        let state = self.states.entry(partition).or_default();
        state.due = Some(state.due.map_or(position.0, |due| due.min(position.0)));
        if state.floor.is_some_and(|floor| position <= floor) {
            state.floor = Some((position.0 - TimeDelta::microseconds(1), Uuid::max()));
        }
    }

    /// Marks the waiting partitions of a queue as due, after jobs ended or settings changed.
    pub(crate) fn mark_freed(&mut self, queue: &str, now: DateTime<Utc>) {
        for (partition, state) in &mut self.states {
            if partition.queue == queue && state.due.is_some() {
                state.due = Some(now);
            }
        }
    }

    /// Postpones a partition with exhausted limits.
    pub(crate) fn mark_blocked(&mut self, partition: &Partition, now: DateTime<Utc>) {
        if let Some(state) = self.states.get_mut(partition) {
            state.due = Some(now + BLOCKED_RETRY);
        }
    }

    /// Records a claim: the last claimed position, and `is_empty` if no job is left.
    pub(crate) fn mark_served(&mut self, partition: &Partition, last: Option<QueuePosition>, is_empty: bool) {
        self.turn += 1;
        let turn = self.turn;
        if let Some(state) = self.states.get_mut(partition) {
            state.turn = turn;
            if last.is_some() {
                state.floor = last;
            }
            if is_empty {
                state.due = None;
            }
        }
    }

    /// Position up to which no job of the partition waits, if known.
    pub(crate) fn floor(&self, partition: &Partition) -> Option<QueuePosition> {
        self.states.get(partition)?.floor
    }

    /// Earliest due time among the partitions accepted by a predicate.
    pub(crate) fn next_due(&self, accepts: impl Fn(&Partition) -> bool) -> Option<DateTime<Utc>> {
        let accepted = self.states.iter().filter(|(partition, _)| accepts(partition));
        accepted.filter_map(|(_, state)| state.due).min()
    }

    /// Returns true if a job is due in a partition accepted by a predicate.
    pub(crate) fn any_due(&self, now: DateTime<Utc>, accepts: impl Fn(&Partition) -> bool) -> bool {
        let is_due = |state: &PartitionState| state.due.is_some_and(|due| due <= now);
        self.states.iter().any(|(partition, state)| is_due(state) && accepts(partition))
    }

    /// Selects the partitions for the next claim, and the number of jobs per partition. Only partitions of the most
    /// urgent priority with due jobs are selected, least recently served first. `demand` is the number of jobs that
    /// workers can take from a partition; `max_jobs` bounds the whole claim.
    pub(crate) fn select(
        &self,
        now: DateTime<Utc>,
        max_jobs: usize,
        demand: impl Fn(&Partition) -> usize,
    ) -> Vec<Selection> {
        let due = self.states.iter().filter_map(|(partition, state)| {
            let is_due = state.due.is_some_and(|due| due <= now);
            let demand = if is_due { demand(partition) } else { 0 };
            (demand > 0).then_some((partition, state, demand))
        });
        let mut due: Vec<_> = due.collect();
        let Some(priority) = due.iter().map(|(partition, ..)| partition.priority).min() else {
            return Vec::new();
        };
        due.retain(|(partition, ..)| partition.priority == priority);
        due.sort_unstable_by_key(|(partition, state, _)| (state.turn, *partition));
        due.truncate(MAX_PARTITIONS_PER_CLAIM.min(max_jobs));
        let share = max_jobs.div_ceil(due.len().max(1));
        let selection = |(partition, state, demand): (&Partition, &PartitionState, usize)| Selection {
            partition: partition.clone(),
            floor: state.floor,
            max_jobs: share.min(demand),
        };
        due.into_iter().map(selection).collect()
    }

    /// Merges the heads of all waiting partitions, as read from the table.
    pub(crate) fn merge_heads(&mut self, heads: Vec<(Partition, QueuePosition)>) {
        if self.states.len() > MAX_KNOWN_PARTITIONS {
            self.states.retain(|_, state| state.due.is_some());
        }
        for (partition, position) in heads {
            self.record_waiting(partition, position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(priority: i32, key: &str) -> Partition {
        Partition { queue: "default".into(), job_type: "export".into(), priority, key: key.into() }
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn the_first_priority_goes_first_and_keys_take_turns() {
        let mut partitions = Partitions::default();
        for (priority, key) in [(2, "a"), (2, "b"), (1, "z")] {
            partitions.record_waiting(partition(priority, key), (at(1), Uuid::nil()));
        }
        let keys = |partitions: &Partitions, max_jobs| -> Vec<_> {
            let selections = partitions.select(at(2), max_jobs, |_| 10);
            selections.into_iter().map(|selection| (selection.partition.key, selection.max_jobs)).collect()
        };
        assert_eq!(keys(&partitions, 10), [("z".to_string(), 10)]);
        partitions.mark_served(&partition(1, "z"), Some((at(1), Uuid::max())), true);
        assert_eq!(keys(&partitions, 10), [("a".to_string(), 5), ("b".to_string(), 5)]);
        partitions.mark_served(&partition(2, "a"), Some((at(1), Uuid::max())), false);
        assert_eq!(keys(&partitions, 1), [("b".to_string(), 1)]);
        assert!(partitions.select(at(0), 10, |_| 10).is_empty());
        assert!(partitions.select(at(2), 10, |_| 0).is_empty());
    }

    #[test]
    fn a_job_before_the_floor_moves_it_back() {
        let mut partitions = Partitions::default();
        partitions.record_waiting(partition(2, ""), (at(5), Uuid::nil()));
        partitions.mark_served(&partition(2, ""), Some((at(5), Uuid::max())), true);
        assert_eq!(partitions.next_due(|_| true), None);
        partitions.record_waiting(partition(2, ""), (at(9), Uuid::nil()));
        assert_eq!(partitions.floor(&partition(2, "")), Some((at(5), Uuid::max())));
        partitions.record_waiting(partition(2, ""), (at(3), Uuid::nil()));
        assert!(partitions.floor(&partition(2, "")).unwrap() < (at(3), Uuid::nil()));
        assert_eq!(partitions.next_due(|_| true), Some(at(3)));
    }
}
