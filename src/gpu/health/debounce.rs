//! A value whose changes are told, but not more often than people and tables can take.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::entity;

/// How much time lies at least between two changes of a value that are told.
const APART: Duration = Duration::from_secs(1);

/// A value that is set at any time, and told when it has changed and the last telling is a while
/// ago.
#[derive(Debug)]
pub(crate) struct Settling<T> {
    now: T,
    since: DateTime<Utc>,
    why: String,
    told: T,
    told_at: Option<Instant>,
    left_out: u64,
}

/// A change to be told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change<T> {
    pub from: T,
    pub to: T,
    /// When it became so.
    pub at: DateTime<Utc>,
    pub why: String,
    /// How often the value changed before and was not told.
    pub left_out: u64,
}

impl<T: Copy + PartialEq> Settling<T> {
    /// A value that was told before.
    pub(crate) fn new(told: T) -> Self {
        Self {
            now: told,
            since: entity::now(),
            why: String::new(),
            told,
            told_at: None,
            left_out: 0,
        }
    }

    /// The value as it is.
    pub(crate) fn now(&self) -> T {
        self.now
    }

    /// The value as it was last told.
    pub(crate) fn told(&self) -> T {
        self.told
    }

    /// From now on it is this one, because of `why`.
    pub(crate) fn set(&mut self, value: T, why: impl Into<String>) {
        if value == self.now {
            return;
        }
        if self.now != self.told {
            self.left_out += 1;
        }
        self.now = value;
        self.since = entity::now();
        self.why = why.into();
    }

    /// What is to be told at this instant, once.
    pub(crate) fn change(&mut self, at: Instant) -> Option<Change<T>> {
        let soon = self
            .told_at
            .is_some_and(|told_at| at.saturating_duration_since(told_at) < APART);
        if self.now == self.told || soon {
            return None;
        }
        self.told_at = Some(at);
        Some(Change {
            from: std::mem::replace(&mut self.told, self.now),
            to: self.now,
            at: self.since,
            why: self.why.clone(),
            left_out: std::mem::take(&mut self.left_out),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_flaps_is_told_once_in_a_second_and_the_rest_is_counted() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut value = Settling::new(0);
        assert_eq!(value.change(at(0)), None);
        value.set(1, "a");
        let first = value.change(at(0)).unwrap();
        assert_eq!((first.from, first.to, first.left_out), (0, 1, 0));
        for (number, millis) in [(2, 100), (1, 200), (3, 300)] {
            value.set(number, format!("b{number}"));
            assert_eq!(value.change(at(millis)), None, "{number}");
        }
        let second = value.change(at(1000)).unwrap();
        assert_eq!((second.from, second.to, second.left_out), (1, 3, 1));
        assert_eq!(second.why, "b3");
        assert_eq!((value.now(), value.told()), (3, 3));
        // Back where it was when it was last told: there is nothing to tell.
        value.set(4, "");
        value.set(3, "");
        assert_eq!(value.change(at(5000)), None);
        value.set(5, "");
        assert_eq!(value.change(at(5000)).unwrap().left_out, 1);
    }
}
