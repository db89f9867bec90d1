//! The lines in which jobs wait: those of one queue, type, priority and concurrency key, the one that has
//! waited longest first. What this process knows of them is a hint; the table is the truth.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::entity::job;

/// How many lines one claim looks at.
pub(crate) const LINES: usize = 100;

/// How many lines are remembered in which nothing waits.
const IDLE: usize = 10_000;

/// How long to wait before a line is looked at again whose limits are exhausted, if nobody tells that they
/// are not any more.
const BLOCKED: TimeDelta = TimeDelta::milliseconds(500);

/// Jobs that wait for the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Line {
    pub queue: String,
    pub job_type: String,
    pub priority: i32,
    pub key: String,
}

/// A place in a line.
pub(crate) type Spot = (DateTime<Utc>, Uuid);

impl Line {
    /// The line of a job, and its place in it. `None` for one that nobody can claim.
    pub(crate) fn of(job: &job::Model) -> Option<(Self, Spot)> {
        let line = Self {
            queue: job.queue_name.clone()?,
            job_type: job.job_type.clone(),
            priority: job.priority,
            key: job.concurrency_key.clone(),
        };
        Some((line, (job.scheduled_at?, job.id)))
    }
}

/// What is known of a line.
#[derive(Debug, Clone, Default)]
struct State {
    /// Nothing waits up to here. On PostgreSQL, jobs that left the line lie there as dead rows, which cost time
    /// for as long as somebody holds a snapshot.
    floor: Option<Spot>,
    /// When something is there, or may be. `None`: nothing is.
    due: Option<DateTime<Utc>>,
    /// When it was last served, in turns.
    turn: u64,
}

/// The lines that are known.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    states: HashMap<Line, State>,
    turn: u64,
}

/// A line of which jobs are to be taken.
#[derive(Debug, Clone)]
pub(crate) struct Take {
    pub line: Line,
    pub floor: Option<Spot>,
    pub most: usize,
}

impl Lines {
    /// A job waits there.
    pub(crate) fn note(&mut self, line: Line, spot: Spot) {
        let state = self.states.entry(line).or_default();
        state.due = Some(state.due.map_or(spot.0, |due| due.min(spot.0)));
        if state.floor.is_some_and(|floor| spot <= floor) {
            state.floor = Some((spot.0 - TimeDelta::microseconds(1), Uuid::max()));
        }
    }

    /// Limits of this queue may not be exhausted any more.
    pub(crate) fn freed(&mut self, queue: &str, now: DateTime<Utc>) {
        for (line, state) in &mut self.states {
            if line.queue == queue && state.due.is_some() {
                state.due = Some(now);
            }
        }
    }

    /// Limits of the queue keep anything from being taken there now.
    pub(crate) fn blocked(&mut self, line: &Line, now: DateTime<Utc>) {
        if let Some(state) = self.states.get_mut(line) {
            state.due = Some(now + BLOCKED);
        }
    }

    /// Something was taken, the last one at `last`; or there is nothing more.
    pub(crate) fn taken(&mut self, line: &Line, last: Option<Spot>, dry: bool) {
        self.turn += 1;
        let turn = self.turn;
        if let Some(state) = self.states.get_mut(line) {
            state.turn = turn;
            if last.is_some() {
                state.floor = last;
            }
            if dry {
                state.due = None;
            }
        }
    }

    /// Nothing is known to be due before.
    pub(crate) fn floor(&self, line: &Line) -> Option<Spot> {
        self.states.get(line)?.floor
    }

    /// The next line to be served, when nothing is due before.
    pub(crate) fn next_due(&self, wanted: impl Fn(&Line) -> bool) -> Option<DateTime<Utc>> {
        let lines = self.states.iter().filter(|(line, _)| wanted(line));
        lines.filter_map(|(_, state)| state.due).min()
    }

    /// Whether something is due in a line that somebody takes.
    pub(crate) fn any_due(&self, now: DateTime<Utc>, takes: impl Fn(&Line) -> bool) -> bool {
        let due = |state: &State| state.due.is_some_and(|due| due <= now);
        self.states
            .iter()
            .any(|(line, state)| due(state) && takes(line))
    }

    /// Which lines are served next, and how many jobs are taken of each: those of the first priority in which
    /// something is due, that which has waited longest for its turn first. `wanted` says how many jobs of a line
    /// can be worked.
    pub(crate) fn choose(
        &self,
        now: DateTime<Utc>,
        room: usize,
        wanted: impl Fn(&Line) -> usize,
    ) -> Vec<Take> {
        let due = self.states.iter().filter_map(|(line, state)| {
            let due = state.due.is_some_and(|due| due <= now);
            let wanted = if due { wanted(line) } else { 0 };
            (wanted > 0).then_some((line, state, wanted))
        });
        let mut due: Vec<_> = due.collect();
        let Some(priority) = due.iter().map(|(line, ..)| line.priority).min() else {
            return Vec::new();
        };
        due.retain(|(line, ..)| line.priority == priority);
        due.sort_unstable_by_key(|(line, state, _)| (state.turn, *line));
        due.truncate(LINES.min(room));
        let share = room.div_ceil(due.len().max(1));
        let take = |(line, state, wanted): (&Line, &State, usize)| Take {
            line: line.clone(),
            floor: state.floor,
            most: share.min(wanted),
        };
        due.into_iter().map(take).collect()
    }

    /// All lines in which something waits, and the first place of each, as the table has them.
    pub(crate) fn swept(&mut self, found: Vec<(Line, Spot)>) {
        if self.states.len() > IDLE {
            self.states.retain(|_, state| state.due.is_some());
        }
        for (line, spot) in found {
            self.note(line, spot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(priority: i32, key: &str) -> Line {
        Line {
            queue: "default".into(),
            job_type: "export".into(),
            priority,
            key: key.into(),
        }
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn the_first_priority_goes_first_and_keys_take_turns() {
        let mut lines = Lines::default();
        for (priority, key) in [(2, "a"), (2, "b"), (1, "z")] {
            lines.note(line(priority, key), (at(1), Uuid::nil()));
        }
        let keys = |lines: &Lines, room| -> Vec<_> {
            let takes = lines.choose(at(2), room, |_| 10);
            takes
                .into_iter()
                .map(|take| (take.line.key, take.most))
                .collect()
        };
        assert_eq!(keys(&lines, 10), [("z".to_string(), 10)]);
        lines.taken(&line(1, "z"), Some((at(1), Uuid::max())), true);
        assert_eq!(
            keys(&lines, 10),
            [("a".to_string(), 5), ("b".to_string(), 5)]
        );
        lines.taken(&line(2, "a"), Some((at(1), Uuid::max())), false);
        assert_eq!(keys(&lines, 1), [("b".to_string(), 1)]);
        assert!(lines.choose(at(0), 10, |_| 10).is_empty());
        assert!(lines.choose(at(2), 10, |_| 0).is_empty());
    }

    #[test]
    fn a_job_before_the_floor_moves_it_back() {
        let mut lines = Lines::default();
        lines.note(line(2, ""), (at(5), Uuid::nil()));
        lines.taken(&line(2, ""), Some((at(5), Uuid::max())), true);
        assert_eq!(lines.next_due(|_| true), None);
        lines.note(line(2, ""), (at(9), Uuid::nil()));
        assert_eq!(lines.floor(&line(2, "")), Some((at(5), Uuid::max())));
        lines.note(line(2, ""), (at(3), Uuid::nil()));
        assert!(lines.floor(&line(2, "")).unwrap() < (at(3), Uuid::nil()));
        assert_eq!(lines.next_due(|_| true), Some(at(3)));
    }
}
