//! Which windows a schedule has: from when to when it is in force.
//!
//! Whether it is in force can change only where the wall clock shows a start, an end or midnight, and
//! where the clock is changed. These instants are found, and the schedule itself is asked at each.

use std::collections::BTreeSet;

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Offset, TimeDelta, TimeZone, Utc};

use super::Schedule;

/// A window, from its start on and until before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub start: DateTime<Utc>,
    /// Absent if it does not end in the time that was looked at.
    pub end: Option<DateTime<Utc>>,
}

impl Schedule {
    /// The first windows that end after `from`, at most `most`, as far as they begin before `until`. One
    /// that has begun before `from` is told from there on. Windows that touch are one.
    pub fn windows(&self, from: DateTime<Utc>, until: DateTime<Utc>, most: usize) -> Vec<Window> {
        let mut windows = Vec::new();
        let mut open = self.contains(from).then_some(from);
        // Days begin at other instants elsewhere, by less than a day.
        let mut day = from.date_naive().checked_sub_days(Days::new(2));
        let last = until.date_naive();
        while let Some(date) = day.filter(|date| *date <= last) {
            for at in self.turns(date) {
                if at <= from || at >= until {
                    continue;
                }
                match (open, self.contains(at)) {
                    (None, true) => open = Some(at),
                    (Some(start), false) => {
                        let end = Some(at);
                        windows.push(Window { start, end });
                        if windows.len() == most {
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

    /// The instants of a day of UTC at which the schedule may begin or end, in order.
    fn turns(&self, date: NaiveDate) -> BTreeSet<DateTime<Utc>> {
        let begins = date.and_time(NaiveTime::MIN).and_utc();
        let Some(ends) = begins.checked_add_signed(TimeDelta::days(1)) else {
            return BTreeSet::new();
        };
        let minutes = match self.window {
            Some((start, end)) => vec![0, start, end],
            None => vec![0],
        };
        let mut turns = BTreeSet::new();
        // What is this day of UTC lies in the day before, this one and the next elsewhere.
        let dates = [date.pred_opt(), Some(date), date.succ_opt()];
        for date in dates.into_iter().flatten() {
            for minute in &minutes {
                let time = NaiveTime::from_num_seconds_from_midnight_opt(minute * 60, 0);
                let local =
                    time.map(|time| self.timezone.from_local_datetime(&date.and_time(time)));
                // Twice where the clock is set back, never where it is set forward.
                let times = local.map(|local| [local.earliest(), local.latest()]);
                let times = times.into_iter().flatten().flatten();
                turns.extend(times.map(|time| time.to_utc()));
            }
        }
        self.clock_changes(begins, ends, &mut turns);
        turns.retain(|turn| (begins..ends).contains(turn));
        turns
    }

    /// Adds the instants at which the clock is changed, to the second.
    fn clock_changes(
        &self,
        from: DateTime<Utc>,
        until: DateTime<Utc>,
        changes: &mut BTreeSet<DateTime<Utc>>,
    ) {
        // No zone has changed its clock twice within an hour.
        let mut before = from - TimeDelta::seconds(1);
        while before < until {
            let after = before + TimeDelta::hours(1);
            let (mut low, mut high) = (before, after);
            if self.offset(low) != self.offset(high) {
                while high - low > TimeDelta::seconds(1) {
                    let middle = low + (high - low) / 2;
                    let middle =
                        middle - TimeDelta::nanoseconds(middle.timestamp_subsec_nanos().into());
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

    fn offset(&self, at: DateTime<Utc>) -> i32 {
        let local = self.timezone.offset_from_utc_datetime(&at.naive_utc());
        local.fix().local_minus_utc()
    }
}
