//! Time zone type for chrono, with rules from jiff.

use std::fmt;

use chrono::{Datelike, FixedOffset, MappedLocalTime, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeZone, Timelike};
use jiff::{
    Timestamp, civil,
    tz::{self, AmbiguousOffset},
};
use parking_lot::RwLock;

use super::source::{Source, Stamp};

/// Time zone of the IANA database. Copies share the rules, which an update of the database
/// replaces.
#[derive(Clone, Copy)]
pub struct Tz(&'static Entry);

struct Entry {
    name: Box<str>,
    rules: RwLock<Rules>,
}

struct Rules {
    zone: tz::TimeZone,
    /// Stamp of the file with the rules; absent for embedded rules.
    stamp: Option<Stamp>,
}

/// Offset of a zone from UTC at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TzOffset {
    zone: Tz,
    offset: FixedOffset,
}

impl Tz {
    /// Opens a zone, which stays in memory until the process ends. About 600 names exist.
    pub(super) fn open(name: &str, source: &Source) -> Option<Self> {
        let (zone, stamp) = source.rules(name)?;
        let entry = Entry { name: name.into(), rules: RwLock::new(Rules { zone, stamp }) };
        Some(Self(Box::leak(Box::new(entry))))
    }

    /// Returns Coordinated Universal Time.
    pub fn utc() -> Self {
        Self::find("UTC").expect("the embedded database has UTC")
    }

    /// Returns the requested name; aliases are not resolved.
    pub fn name(&self) -> &'static str {
        &self.0.name
    }

    /// Reloads the rules. Returns true if the rules have changed.
    pub(super) fn load(self, source: &Source) -> bool {
        // A zone removed from the database keeps its last rules.
        let Some((zone, stamp)) = source.rules(self.name()) else {
            return false;
        };
        let mut rules = self.0.rules.write();
        let changed = rules.zone != zone;
        *rules = Rules { zone, stamp };
        changed
    }

    /// Returns true if the file with the rules was changed after loading.
    pub(super) fn is_stale(self, source: &Source) -> bool {
        let rules = self.0.rules.read();
        rules.stamp != source.stamp(self.name())
    }

    fn with_rules<T>(self, query: impl FnOnce(&tz::TimeZone) -> T) -> T {
        let rules = self.0.rules.read();
        query(&rules.zone)
    }

    fn offset(self, offset: tz::Offset) -> TzOffset {
        let offset = FixedOffset::east_opt(offset.seconds());
        TzOffset { zone: self, offset: offset.unwrap_or_else(|| Offset::fix(&chrono::Utc)) }
    }
}

impl PartialEq for Tz {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Tz {}

impl fmt::Debug for Tz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Tz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Offset for TzOffset {
    fn fix(&self) -> FixedOffset {
        self.offset
    }
}

impl fmt::Display for TzOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.offset.fmt(f)
    }
}

impl TimeZone for Tz {
    type Offset = TzOffset;

    fn from_offset(offset: &TzOffset) -> Self {
        offset.zone
    }

    fn offset_from_local_date(&self, local: &NaiveDate) -> MappedLocalTime<TzOffset> {
        self.offset_from_local_datetime(&local.and_time(NaiveTime::MIN))
    }

    fn offset_from_local_datetime(&self, local: &NaiveDateTime) -> MappedLocalTime<TzOffset> {
        let ambiguous = self.with_rules(|zone| zone.to_ambiguous_timestamp(to_civil(*local)));
        match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { offset } => MappedLocalTime::Single(self.offset(offset)),
            AmbiguousOffset::Gap { .. } => MappedLocalTime::None,
            AmbiguousOffset::Fold { before, after } => {
                MappedLocalTime::Ambiguous(self.offset(before), self.offset(after))
            }
        }
    }

    fn offset_from_utc_date(&self, utc: &NaiveDate) -> TzOffset {
        self.offset_from_utc_datetime(&utc.and_time(NaiveTime::MIN))
    }

    fn offset_from_utc_datetime(&self, utc: &NaiveDateTime) -> TzOffset {
        let seconds = utc.and_utc().timestamp();
        let last = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
        let time = Timestamp::from_second(seconds).unwrap_or(last);
        self.offset(self.with_rules(|zone| zone.to_offset(time)))
    }
}

/// Converts a local time to jiff, with seconds; years beyond 9999 become the last time.
fn to_civil(local: NaiveDateTime) -> civil::DateTime {
    let to_i8 = |number: u32| i8::try_from(number).ok();
    let date = || {
        let year = i16::try_from(local.year()).ok()?;
        civil::DateTime::new(
            year,
            to_i8(local.month())?,
            to_i8(local.day())?,
            to_i8(local.hour())?,
            to_i8(local.minute())?,
            to_i8(local.second())?,
            0,
        )
        .ok()
    };
    let last = if local.year() < 0 { civil::DateTime::MIN } else { civil::DateTime::MAX };
    date().unwrap_or(last)
}
