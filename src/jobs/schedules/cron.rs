//! Ticks of a schedule: a cron expression in a time zone.

use chrono::{DateTime, LocalResult, NaiveDateTime, SecondsFormat, TimeDelta, TimeZone, Utc};
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};

use crate::{
    error::{Error, Result},
    time_zones::{Tz, UnknownZone},
};

/// Maximum gap of a local clock, in minutes: a whole day where the date line moved, with a margin.
const MAX_GAP_MINUTES: i64 = 3 * 24 * 60;

/// Ticks of a schedule.
#[derive(Debug)]
pub(super) struct Ticks {
    cron: Cron,
    zone: Tz,
    /// True if the expression names hours and follows the local clock. Otherwise ticks follow the elapsed time.
    follows_local_clock: bool,
}

impl Ticks {
    /// Parses a cron expression and the name of a time zone. An expression without a tick after `now` is refused.
    /// Field names in errors begin with `prefix`.
    pub(super) fn parse(prefix: &str, cron: &str, time_zone: &str, now: DateTime<Utc>) -> Result<Self> {
        let zone: Tz = time_zone
            .parse()
            .map_err(|unknown: UnknownZone| Error::invalid(format!("{prefix}time_zone"), unknown.to_string()))?;
        let field = format!("{prefix}cron");
        // The parser reads an empty entry as no value. The search for a tick of an empty field takes a minute.
        let mut entries = cron.split_whitespace().flat_map(|field| field.split(','));
        if entries.any(str::is_empty) {
            let problem = "is not a cron expression: an entry of a list is empty";
            return Err(Error::invalid(field, problem));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron =
            parser.parse(cron).map_err(|error| Error::invalid(&field, format!("is not a cron expression: {error}")))?;
        let hours = cron.pattern.hours.values();
        let follows_local_clock = hours.len() < 24;
        let ticks = Self { cron, zone, follows_local_clock };
        if ticks.after(now).is_none() {
            return Err(Error::invalid(field, "would never tick"));
        }
        Ok(ticks)
    }

    /// First tick after a time.
    pub(super) fn after(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = time.with_timezone(&self.zone);
        if !self.follows_local_clock {
            let next = self.cron.find_next_occurrence(&local, false).ok()?;
            return Some(next.to_utc());
        }
        let mut clock = local.naive_local();
        loop {
            // Ticks increase with the local time, so none is skipped. A repeated local time gives a tick before
            // `time` and is passed over.
            clock = self.cron.find_next_occurrence(&clock, false).ok()?;
            let tick = self.moment_of(clock)?;
            if tick > time {
                return Some(tick);
            }
        }
    }

    /// First moment with a local time. For a time skipped by the clock, the moment of the skip.
    fn moment_of(&self, clock: NaiveDateTime) -> Option<DateTime<Utc>> {
        let first = |clock: NaiveDateTime| match self.zone.from_local_datetime(&clock) {
            LocalResult::Single(time) | LocalResult::Ambiguous(time, _) => Some(time.to_utc()),
            LocalResult::None => None,
        };
        if let Some(time) = first(clock) {
            return Some(time);
        }
        let mut minutes = (1..=MAX_GAP_MINUTES).map(|minutes| clock + TimeDelta::minutes(minutes));
        let after_gap = minutes.find(|clock| first(*clock).is_some())?;
        let mut seconds = (0..60).rev().map(|seconds| after_gap - TimeDelta::seconds(seconds));
        seconds.find_map(first)
    }

    /// Local time in RFC 3339 format.
    pub(super) fn local_time(&self, time: DateTime<Utc>) -> String {
        let local = time.with_timezone(&self.zone);
        local.to_rfc3339_opts(SecondsFormat::Secs, false)
    }
}

#[cfg(test)]
mod tests;
