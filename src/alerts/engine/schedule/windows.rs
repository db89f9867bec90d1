//! Computation of the windows of a schedule as absolute times.
//!
//! A schedule can change only at a window boundary, at midnight or at a clock change. These
//! instants are enumerated, and the schedule is evaluated at each of them.

use std::collections::BTreeSet;

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Offset, TimeDelta, TimeZone, Utc};

use super::weekly::Schedule;

/// Window of a schedule. The start is inside, the end is outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub start: DateTime<Utc>,
    /// End of the window. `None` if the window extends beyond the searched span.
    pub end: Option<DateTime<Utc>>,
}

impl Schedule {
    /// Returns the first windows that end after `from` and start before `until`, at most `limit`. A
    /// window that started before `from` is cut at `from`. Adjacent windows are merged.
    pub fn windows(&self, from: DateTime<Utc>, until: DateTime<Utc>, limit: usize) -> Vec<Window> {
        let mut windows = Vec::new();
        let mut open = self.contains(from).then_some(from);
        // Local days start up to one day before or after the UTC day.
        let mut day = from.date_naive().checked_sub_days(Days::new(2));
        let last = until.date_naive();
        while let Some(date) = day.filter(|date| *date <= last) {
            for instant in self.boundaries(date) {
                if instant <= from || instant >= until {
                    continue;
                }
                match (open, self.contains(instant)) {
                    (None, true) => open = Some(instant),
                    (Some(start), false) => {
                        let end = Some(instant);
                        windows.push(Window { start, end });
                        if windows.len() == limit {
                            return windows;
                        }
                        open = None;
                    }
                    (None, false) | (Some(_), true) => {}
                }
            }
            day = date.checked_add_days(Days::new(1));
        }
        windows.extend(open.map(|start| Window { start, end: None }));
        windows
    }

    /// Returns the instants of a UTC day at which the schedule may change, in order.
    fn boundaries(&self, date: NaiveDate) -> BTreeSet<DateTime<Utc>> {
        let day_start = date.and_time(NaiveTime::MIN).and_utc();
        let Some(day_end) = day_start.checked_add_signed(TimeDelta::days(1)) else {
            return BTreeSet::new();
        };
        let minutes = match self.window {
            Some((start, end)) => vec![0, start, end],
            None => vec![0],
        };
        let mut boundaries = BTreeSet::new();
        // A UTC day overlaps three local dates: the previous, the same and the next date.
        let dates = [date.pred_opt(), Some(date), date.succ_opt()];
        for date in dates.into_iter().flatten() {
            for minute in &minutes {
                let time = NaiveTime::from_num_seconds_from_midnight_opt(minute * 60, 0);
                let local = time.map(|time| self.timezone.from_local_datetime(&date.and_time(time)));
                // A local time occurs twice when clocks are set back, and never when clocks are set
                // forward.
                let occurrences = local.into_iter().flat_map(|local| [local.earliest(), local.latest()]).flatten();
                boundaries.extend(occurrences.map(|time| time.to_utc()));
            }
        }
        self.add_clock_changes(day_start, day_end, &mut boundaries);
        boundaries.retain(|boundary| (day_start..day_end).contains(boundary));
        boundaries
    }

    /// Adds the instants of clock changes, with a resolution of one second.
    fn add_clock_changes(&self, from: DateTime<Utc>, until: DateTime<Utc>, changes: &mut BTreeSet<DateTime<Utc>>) {
        // No time zone ever changed the clock twice within one hour.
        let mut before = from - TimeDelta::seconds(1);
        while before < until {
            let after = before + TimeDelta::hours(1);
            let (mut low, mut high) = (before, after);
            if self.offset(low) != self.offset(high) {
                while high - low > TimeDelta::seconds(1) {
                    let center = low + (high - low) / 2;
                    let middle = center - TimeDelta::nanoseconds(center.timestamp_subsec_nanos().into());
                    if self.offset(middle) == self.offset(low) {
                        low = middle;
                    } else {
                        high = middle;
                    }
                }
                changes.insert(high);
            }
            before = after;
        }
    }

    fn offset(&self, instant: DateTime<Utc>) -> i32 {
        let local = self.timezone.offset_from_utc_datetime(&instant.naive_utc());
        local.fix().local_minus_utc()
    }
}
