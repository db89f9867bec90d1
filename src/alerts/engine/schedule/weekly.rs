//! Schedule of a rule: weekly windows of local time in a time zone.

use chrono::{DateTime, Datelike, Timelike, Utc};

use crate::{
    entity::alert_rule::{self, Weekday},
    error::{Error, Result},
    pb,
    time_zones::{Tz, UnknownZone},
};

/// Weekly schedule, compiled for evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    pub(super) timezone: Tz,
    /// Days on which windows start. Bit 0 is Monday.
    days: u8,
    /// First minute of the window and first minute after the window, counted from midnight. `None`
    /// for the whole day.
    pub(super) window: Option<(u32, u32)>,
}

impl Schedule {
    /// Compiles a stored schedule. Fails for a value that violates the API's validation, such as a
    /// value of another program.
    pub fn compile(schedule: &alert_rule::Schedule) -> Result<Self> {
        let timezone = timezone(&schedule.timezone)?;
        let mut days = schedule.days.iter().fold(0, |days, day| days | 1 << *day as u8);
        if days == 0 {
            days = 0b0111_1111;
        }
        let window = match (&schedule.start_time, &schedule.end_time) {
            (None, None) => None,
            (Some(start), Some(end)) => Some((minute("start_time", start)?, minute("end_time", end)?)),
            (Some(_), None) => {
                return Err(Error::invalid("end_time", "is required with start_time"));
            }
            (None, Some(_)) => {
                return Err(Error::invalid("start_time", "is required with end_time"));
            }
        };
        if window.is_some_and(|(start, end)| start == end) {
            return Err(Error::invalid("end_time", "must not equal start_time; leave out both for the whole day"));
        }
        Ok(Self { timezone, days, window })
    }

    /// Returns the time zone of the windows.
    pub fn timezone(&self) -> Tz {
        self.timezone
    }

    /// Returns true if `time` is inside a window.
    pub fn contains(&self, time: DateTime<Utc>) -> bool {
        self.contains_clock(WallClock::at(time, self.timezone))
    }

    /// Returns true if the local time `clock` is inside a window.
    pub fn contains_clock(&self, clock: WallClock) -> bool {
        let (today, now) = (clock.day, clock.minute);
        let starts_on = |day: u32| self.days & (1 << (day % 7)) != 0;
        match self.window {
            None => starts_on(today),
            Some((start, end)) if start < end => starts_on(today) && (start..end).contains(&now),
            // Windows over midnight belong to the day of their start.
            Some((start, end)) => (now >= start && starts_on(today)) || (now < end && starts_on(today + 6)),
        }
    }
}

/// Local time with a resolution of one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallClock {
    /// Day of the week. 0 is Monday.
    day: u32,
    /// Minute of the day, from 0 to 1439.
    minute: u32,
}

impl WallClock {
    /// Converts a time to the local time of a time zone.
    pub fn at(time: DateTime<Utc>, timezone: Tz) -> Self {
        let local = time.with_timezone(&timezone);
        Self { day: local.weekday().num_days_from_monday(), minute: local.hour() * 60 + local.minute() }
    }
}

fn timezone(name: &str) -> Result<Tz> {
    let problem = |unknown: UnknownZone| Error::invalid("time_zone", unknown.to_string());
    name.parse().map_err(problem)
}

/// Parses `HH:MM` into a minute of the day.
fn minute(field: &str, text: &str) -> Result<u32> {
    let two_digits = |text: &str, max: u32| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u32>().ok().filter(|number| digits && *number <= max)
    };
    let minute =
        text.split_once(':').and_then(|(hour, minute)| Some(two_digits(hour, 23)? * 60 + two_digits(minute, 59)?));
    minute.ok_or_else(|| Error::invalid(field, "must be HH:MM, from 00:00 to 23:59"))
}

/// Validates a schedule of a request. `field` is the path for errors.
pub fn from_proto(field: &str, schedule: &pb::Schedule) -> Result<alert_rule::Schedule> {
    let mut days = Vec::with_capacity(schedule.days.len());
    for (position, day) in schedule.days.iter().enumerate() {
        let field = format!("{field}.days[{position}]");
        let day = match pb::DayOfWeek::try_from(*day) {
            Ok(pb::DayOfWeek::Monday) => Weekday::Monday,
            Ok(pb::DayOfWeek::Tuesday) => Weekday::Tuesday,
            Ok(pb::DayOfWeek::Wednesday) => Weekday::Wednesday,
            Ok(pb::DayOfWeek::Thursday) => Weekday::Thursday,
            Ok(pb::DayOfWeek::Friday) => Weekday::Friday,
            Ok(pb::DayOfWeek::Saturday) => Weekday::Saturday,
            Ok(pb::DayOfWeek::Sunday) => Weekday::Sunday,
            Ok(pb::DayOfWeek::Unspecified) => {
                return Err(Error::invalid(field, "must not be unspecified"));
            }
            Err(_) => {
                return Err(Error::invalid(field, "is not a value that this server knows"));
            }
        };
        if days.contains(&day) {
            return Err(Error::invalid(field, "must not be repeated"));
        }
        days.push(day);
    }
    days.sort();
    let non_empty = |text: &str| Some(text.to_string()).filter(|text| !text.is_empty());
    let schedule = alert_rule::Schedule {
        days,
        start_time: non_empty(&schedule.start_time),
        end_time: non_empty(&schedule.end_time),
        timezone: non_empty(&schedule.time_zone).unwrap_or_else(|| "UTC".to_string()),
    };
    match Schedule::compile(&schedule) {
        Ok(_) => Ok(schedule),
        Err(Error::Invalid { field: name, problem }) => Err(Error::invalid(format!("{field}.{name}"), problem)),
        Err(other) => Err(other),
    }
}

/// Converts a stored schedule to the message.
pub fn to_proto(schedule: alert_rule::Schedule) -> pb::Schedule {
    let day = |day: Weekday| match day {
        Weekday::Monday => pb::DayOfWeek::Monday,
        Weekday::Tuesday => pb::DayOfWeek::Tuesday,
        Weekday::Wednesday => pb::DayOfWeek::Wednesday,
        Weekday::Thursday => pb::DayOfWeek::Thursday,
        Weekday::Friday => pb::DayOfWeek::Friday,
        Weekday::Saturday => pb::DayOfWeek::Saturday,
        Weekday::Sunday => pb::DayOfWeek::Sunday,
    };
    pb::Schedule {
        days: schedule.days.into_iter().map(|weekday| day(weekday).into()).collect(),
        start_time: schedule.start_time.unwrap_or_default(),
        end_time: schedule.end_time.unwrap_or_default(),
        time_zone: schedule.timezone,
    }
}

#[cfg(test)]
mod tests {
    use chrono::{Days, NaiveTime, TimeDelta, TimeZone};

    use super::*;

    fn schedule(days: &[Weekday], window: Option<(&str, &str)>, timezone: &str) -> Schedule {
        Schedule::compile(&alert_rule::Schedule {
            days: days.to_vec(),
            start_time: window.map(|(start, _)| start.to_string()),
            end_time: window.map(|(_, end)| end.to_string()),
            timezone: timezone.to_string(),
        })
        .unwrap()
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn a_window_begins_with_its_start_and_ends_before_its_end() {
        let night = schedule(&[Weekday::Friday], Some(("22:00", "06:00")), "Europe/Berlin");
        // 2026-11-27 is a Friday. Berlin is one hour ahead of UTC.
        for (time, inside) in [
            ("2026-11-27T20:59:59Z", false),
            ("2026-11-27T21:00:00Z", true),
            ("2026-11-28T04:59:59Z", true),
            ("2026-11-28T05:00:00Z", false),
            ("2026-11-27T03:00:00Z", false),
            ("2026-11-28T22:00:00Z", false),
        ] {
            assert_eq!(night.contains(at(time)), inside, "{time}");
        }
        let sunday = schedule(&[Weekday::Sunday], None, "UTC");
        assert!(sunday.contains(at("2026-11-29T23:59:59Z")) && !sunday.contains(at("2026-11-30T00:00:00Z")));
        assert!(schedule(&[], None, "UTC").contains(at("2026-11-30T00:00:00Z")));
        let to_midnight = schedule(&[], Some(("08:00", "00:00")), "UTC");
        assert!(to_midnight.contains(at("2026-11-30T23:59:00Z")) && !to_midnight.contains(at("2026-11-30T00:00:00Z")));
    }

    /// Compares every quarter of an hour of a year, with all clock changes, against windows
    /// computed day by day.
    #[test]
    fn the_wall_clock_decides_when_clocks_change() {
        let windows = [("01:30", "02:30"), ("02:00", "03:00"), ("22:00", "06:00"), ("00:00", "03:30")];
        let days = [Weekday::Sunday, Weekday::Saturday];
        for zone in ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca"]
        {
            let timezone: Tz = zone.parse().unwrap();
            for (start, end) in windows {
                let schedule = schedule(&days, Some((start, end)), zone);
                let clock = |text: &str| NaiveTime::parse_from_str(text, "%H:%M").unwrap();
                let first = Utc.with_ymd_and_hms(2026, 1, 1, 0, 0, 0).unwrap();
                // All clock changes of the tested zones fall on a quarter of an hour.
                for quarter in 0..365 * 96 {
                    let time = first + TimeDelta::minutes(quarter * 15);
                    let local = time.with_timezone(&timezone).naive_local();
                    let within = [local.date(), local.date() - Days::new(1)].into_iter().any(|date| {
                        let on = [5, 6].contains(&date.weekday().num_days_from_monday());
                        let from = date.and_time(clock(start));
                        let until_date = if end < start { date + Days::new(1) } else { date };
                        on && (from..until_date.and_time(clock(end))).contains(&local)
                    });
                    assert_eq!(schedule.contains(time), within, "{zone} {start}-{end} {time}");
                }
            }
        }
    }

    #[test]
    fn bad_schedules_are_refused_by_field() {
        let good = pb::Schedule { start_time: "08:00".into(), end_time: "18:00".into(), ..Default::default() };
        assert_eq!(from_proto("s", &good).unwrap().timezone, "UTC");
        let field = |schedule: pb::Schedule| match from_proto("s", &schedule) {
            Err(Error::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let bad = |change: fn(&mut pb::Schedule)| {
            let mut schedule = good.clone();
            change(&mut schedule);
            field(schedule)
        };
        assert_eq!(bad(|s| s.time_zone = "Mars/Olympus".into()), "s.time_zone");
        assert_eq!(bad(|s| s.end_time.clear()), "s.end_time");
        assert_eq!(bad(|s| s.start_time.clear()), "s.start_time");
        assert_eq!(bad(|s| s.end_time = "08:00".into()), "s.end_time");
        for time in ["8:00", "24:00", "12:60", "+1:00", "0800", "ab:cd", "08:00:00"] {
            let schedule = pb::Schedule { start_time: time.into(), ..good.clone() };
            assert_eq!(field(schedule), "s.start_time", "{time}");
        }
        assert_eq!(bad(|s| s.days = vec![1, 0]), "s.days[1]");
        assert_eq!(bad(|s| s.days = vec![8]), "s.days[0]");
        assert_eq!(bad(|s| s.days = vec![1, 1]), "s.days[1]");
    }
}
