//! When a schedule ticks: a cron expression on the clocks of a time zone.

use chrono::{DateTime, LocalResult, NaiveDateTime, SecondsFormat, TimeDelta, TimeZone, Utc};
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};

use crate::{
    error::{Error, Result},
    time_zones::{Tz, UnknownZone},
};

/// How many minutes clocks are put forward at most: a day, where the date line moved, and some.
const LONGEST_GAP: i64 = 3 * 24 * 60;

/// The ticks of a schedule.
#[derive(Debug)]
pub(super) struct Ticks {
    cron: Cron,
    zone: Tz,
    /// Whether it goes by what clocks show, and not by the time that passes: if its expression names
    /// some hours.
    by_the_clock: bool,
}

impl Ticks {
    /// Reads a cron expression and the name of a time zone. Refuses what would never tick after `now`. Fields
    /// that are refused have names that begin with `prefix`.
    pub(super) fn parse(
        prefix: &str,
        cron: &str,
        time_zone: &str,
        now: DateTime<Utc>,
    ) -> Result<Self> {
        let zone: Tz = time_zone.parse().map_err(|unknown: UnknownZone| {
            Error::invalid(format!("{prefix}time_zone"), unknown.to_string())
        })?;
        let field = format!("{prefix}cron");
        // They would be read as nothing, and a field that holds nothing would be looked for for a minute.
        let mut entries = cron.split_whitespace().flat_map(|field| field.split(','));
        if entries.any(str::is_empty) {
            let problem = "is not a cron expression: an entry of a list is empty";
            return Err(Error::invalid(field, problem));
        }
        let parser = CronParser::builder()
            .seconds(Seconds::Optional)
            .year(Year::Disallowed)
            .build();
        let cron = parser.parse(cron).map_err(|error| {
            Error::invalid(&field, format!("is not a cron expression: {error}"))
        })?;
        let hours = cron.pattern.hours.values();
        let by_the_clock = hours.len() < 24;
        let ticks = Self {
            cron,
            zone,
            by_the_clock,
        };
        if ticks.after(now).is_none() {
            return Err(Error::invalid(field, "would never tick"));
        }
        Ok(ticks)
    }

    /// The first tick after a time.
    pub(super) fn after(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = time.with_timezone(&self.zone);
        if !self.by_the_clock {
            let next = self.cron.find_next_occurrence(&local, false).ok()?;
            return Some(next.to_utc());
        }
        let mut clock = local.naive_local();
        loop {
            // The later a clock shows a time, the later is its tick: no tick is passed over. Those are before
            // `time` that clocks show for the second time.
            clock = self.cron.find_next_occurrence(&clock, false).ok()?;
            let tick = self.when(clock)?;
            if tick > time {
                return Some(tick);
            }
        }
    }

    /// When clocks show this; the first time if they do so twice. If they never do, when they are put
    /// forward.
    fn when(&self, clock: NaiveDateTime) -> Option<DateTime<Utc>> {
        let first = |clock: NaiveDateTime| match self.zone.from_local_datetime(&clock) {
            LocalResult::Single(time) | LocalResult::Ambiguous(time, _) => Some(time.to_utc()),
            LocalResult::None => None,
        };
        if let Some(time) = first(clock) {
            return Some(time);
        }
        let minutes = (1..=LONGEST_GAP).map(|minutes| clock + TimeDelta::minutes(minutes));
        let shown = minutes.into_iter().find(|clock| first(*clock).is_some())?;
        let seconds = (0..60)
            .rev()
            .map(|seconds| shown - TimeDelta::seconds(seconds));
        seconds.into_iter().find_map(first)
    }

    /// What clocks show at a time.
    pub(super) fn local_time(&self, time: DateTime<Utc>) -> String {
        let local = time.with_timezone(&self.zone);
        local.to_rfc3339_opts(SecondsFormat::Secs, false)
    }
}

#[cfg(test)]
mod tests;
