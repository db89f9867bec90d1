//! Debouncing of a value: limits the rate at which changes of the value are reported.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::entity;

/// Minimum time between two reported changes.
const MIN_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Value that may change at any time, and whose changes are reported at a limited rate.
#[derive(Debug)]
pub(crate) struct Debounced<T> {
    current: T,
    since: DateTime<Utc>,
    reason: String,
    reported: T,
    reported_at: Option<Instant>,
    skipped: u64,
}

/// Change to report.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change<T> {
    pub from: T,
    pub to: T,
    /// Time at which the value became `to`.
    pub since: DateTime<Utc>,
    pub reason: String,
    /// Number of earlier changes that were not reported.
    pub skipped: u64,
}

impl<T: Copy + PartialEq> Debounced<T> {
    /// Value that counts as reported.
    pub(crate) fn new(reported: T) -> Self {
        Self { current: reported, since: entity::now(), reason: String::new(), reported, reported_at: None, skipped: 0 }
    }

    /// Current value.
    pub(crate) fn current(&self) -> T {
        self.current
    }

    /// Value as last reported.
    pub(crate) fn reported(&self) -> T {
        self.reported
    }

    /// Sets the value. `reason` explains the change.
    pub(crate) fn set(&mut self, value: T, reason: impl Into<String>) {
        if value == self.current {
            return;
        }
        if self.current != self.reported {
            self.skipped += 1;
        }
        self.current = value;
        self.since = entity::now();
        self.reason = reason.into();
    }

    /// Change to report at `now`. Each change is returned once.
    pub(crate) fn change(&mut self, now: Instant) -> Option<Change<T>> {
        let is_too_soon = self
            .reported_at
            .is_some_and(|reported_at| now.saturating_duration_since(reported_at) < MIN_REPORT_INTERVAL);
        if self.current == self.reported || is_too_soon {
            return None;
        }
        self.reported_at = Some(now);
        Some(Change {
            from: std::mem::replace(&mut self.reported, self.current),
            to: self.current,
            since: self.since,
            reason: self.reason.clone(),
            skipped: std::mem::take(&mut self.skipped),
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
        let mut value = Debounced::new(0);
        assert_eq!(value.change(at(0)), None);
        value.set(1, "a");
        let first = value.change(at(0)).unwrap();
        assert_eq!((first.from, first.to, first.skipped), (0, 1, 0));
        for (number, millis) in [(2, 100), (1, 200), (3, 300)] {
            value.set(number, format!("b{number}"));
            assert_eq!(value.change(at(millis)), None, "{number}");
        }
        let second = value.change(at(1000)).unwrap();
        assert_eq!((second.from, second.to, second.skipped), (1, 3, 1));
        assert_eq!(second.reason, "b3");
        assert_eq!((value.current(), value.reported()), (3, 3));
        // The value is back where it was last reported, so nothing is reported.
        value.set(4, "");
        value.set(3, "");
        assert_eq!(value.change(at(5000)), None);
        value.set(5, "");
        assert_eq!(value.change(at(5000)).unwrap().skipped, 1);
    }
}
