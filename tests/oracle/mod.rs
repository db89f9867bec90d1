//! When a schedule is in force, worked out the long way round, to check the server's answer by; and the
//! check itself, minute by minute, for tests and benchmarks.

use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, TimeDelta, TimeZone, Utc};
use watchpost::{
    alerts::engine::schedule::Schedule,
    entity::alert_rule::{self, Weekday},
    time_zones::Tz,
};

/// A schedule as people say it.
#[derive(Debug, Clone, Copy)]
pub struct Said {
    /// Monday first.
    pub days: [bool; 7],
    /// In minutes of the day; without it the whole day.
    pub window: Option<(u32, u32)>,
    pub timezone: Tz,
}

impl Said {
    /// Whether it is in force, by the calendar of the place: windows are laid out day by day.
    pub fn contains(&self, at: DateTime<Utc>) -> bool {
        let local = self.timezone.from_utc_datetime(&at.naive_utc()).naive_local();
        let clock = |date: NaiveDate, minute: u32| date.and_time(NaiveTime::MIN) + TimeDelta::minutes(minute.into());
        let (start, end) = self.window.unwrap_or((0, 1_440));
        let end = if end <= start { end + 1_440 } else { end };
        [local.date() - TimeDelta::days(1), local.date()]
            .into_iter()
            .filter(|date| self.days[date.weekday().num_days_from_monday() as usize])
            .any(|date| clock(date, start) <= local && local < clock(date, end))
    }

    /// The same as the server has it.
    pub fn compiled(&self) -> Schedule {
        use Weekday::{Friday, Monday, Saturday, Sunday, Thursday, Tuesday, Wednesday};
        let week = [Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday];
        let days = week.into_iter().zip(self.days);
        let text = |minute: u32| format!("{:02}:{:02}", minute / 60, minute % 60);
        let schedule = alert_rule::Schedule {
            days: days.filter(|(_, on)| *on).map(|(day, _)| day).collect(),
            start_time: self.window.map(|(start, _)| text(start)),
            end_time: self.window.map(|(_, end)| text(end)),
            timezone: self.timezone.name().into(),
        };
        Schedule::compile(&schedule).unwrap()
    }

    /// Compares the server's schedule and its windows with this one, minute by minute. Returns how many
    /// minutes that were, or the first at which they differ.
    pub fn check(&self, from: DateTime<Utc>, until: DateTime<Utc>) -> Result<u64, String> {
        let schedule = self.compiled();
        let windows = schedule.windows(from, until, usize::MAX);
        let mut windows = windows.into_iter().peekable();
        let (mut at, mut minutes) = (from, 0);
        while at < until {
            let expected = self.contains(at);
            while windows.next_if(|window| window.end.is_some_and(|end| end <= at)).is_some() {}
            let in_window = windows.peek().is_some_and(|window| window.start <= at);
            if schedule.contains(at) != expected || in_window != expected {
                let got = (schedule.contains(at), in_window);
                return Err(format!("{self:?} at {at}: {got:?} instead of {expected}"));
            }
            at += TimeDelta::minutes(1);
            minutes += 1;
        }
        Ok(minutes)
    }
}

/// Schedules that meet every change of the clock, whatever the hour.
pub fn schedules(timezone: Tz) -> [Said; 4] {
    let said = |days, window| Said { days, window, timezone };
    let weekend = [false, false, false, false, false, true, true];
    [
        said(weekend, Some((1_320, 360))),
        said([true; 7], Some((150, 165))),
        said([true, false, true, false, true, false, true], Some((0, 210))),
        said(weekend, None),
    ]
}
