//! Instants: microseconds of UTC here, `google.protobuf.Timestamp` on the wire.

use std::ops::RangeInclusive;

use chrono::{DateTime, TimeDelta, Utc};
use prost_types::{Duration, Timestamp};

use crate::{
    error::{Error, Result},
    pb,
};

/// How far a client's clock may be ahead of ours.
const AHEAD: TimeDelta = TimeDelta::days(1);

/// The last year that a time may lie in.
const LAST_YEAR: i64 = 253_402_300_799; // 9999-12-31T23:59:59Z

/// The longest length of time that the wire has.
pub const LONGEST: std::time::Duration = std::time::Duration::from_hours(87_660_000);

/// An instant for the wire.
pub fn to_proto(time: DateTime<Utc>) -> Timestamp {
    // Nanoseconds are below 10^9, or 2 * 10^9 in a leap second.
    let nanos = i32::try_from(time.timestamp_subsec_nanos())
        .unwrap_or(0)
        .min(999_999_999);
    Timestamp {
        seconds: time.timestamp(),
        nanos,
    }
}

/// An instant from the wire, from 1970 to 9999, cut to microseconds, which is what databases keep.
pub fn from_proto(field: &str, time: Timestamp) -> Result<DateTime<Utc>> {
    if !(0..=LAST_YEAR).contains(&time.seconds) {
        return Err(Error::invalid(field, "must be a time from 1970 to 9999"));
    }
    let nanos = u32::try_from(time.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000);
    nanos
        .and_then(|nanos| DateTime::from_timestamp(time.seconds, nanos / 1_000 * 1_000))
        .ok_or_else(|| Error::invalid(field, "must have nanos in [0, 999999999]"))
}

/// An instant from microseconds since 1970, up to 9999.
pub fn from_micros(micros: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(micros)
        .filter(|time| (0..=LAST_YEAR).contains(&time.timestamp()))
}

/// An instant from milliseconds since 1970, up to 9999.
pub fn from_millis(millis: i64) -> Option<DateTime<Utc>> {
    from_micros(millis.checked_mul(1_000)?)
}

/// A length of time for the wire, from milliseconds.
pub fn span(millis: i64) -> Duration {
    let nanos = i32::try_from(millis % 1_000 * 1_000_000).unwrap_or(0);
    Duration {
        seconds: millis / 1_000,
        nanos,
    }
}

/// A length of time for the wire, from microseconds.
pub fn span_of_micros(micros: i64) -> Duration {
    let nanos = i32::try_from(micros % 1_000_000 * 1_000).unwrap_or(0);
    Duration {
        seconds: micros / 1_000_000,
        nanos,
    }
}

/// A length of time for the wire, from seconds.
pub fn span_of_seconds(seconds: i32) -> Duration {
    Duration {
        seconds: seconds.into(),
        nanos: 0,
    }
}

/// A length of time for the wire, from seconds. `None` for one that the wire does not have.
pub fn span_of_seconds_f64(seconds: f64) -> Option<Duration> {
    let length = std::time::Duration::try_from_secs_f64(seconds).ok()?;
    let length = Some(length).filter(|length| *length <= LONGEST)?;
    length.try_into().ok()
}

/// A length of time for the wire.
pub fn length(length: std::time::Duration) -> Duration {
    span(millis(length))
}

/// A length of time in whole milliseconds.
pub fn millis(length: std::time::Duration) -> i64 {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX)
}

/// A length of time from the wire that is in `range`.
pub fn duration(
    field: &str,
    value: Duration,
    range: &RangeInclusive<std::time::Duration>,
) -> Result<std::time::Duration> {
    // The conversion of `prost_types` overflows where both parts are far below zero.
    let seconds = u64::try_from(value.seconds).ok();
    let nanos = u32::try_from(value.nanos).ok();
    seconds
        .zip(nanos.filter(|nanos| *nanos < 1_000_000_000))
        .map(|(seconds, nanos)| std::time::Duration::new(seconds, nanos))
        .filter(|length| range.contains(length))
        .ok_or_else(|| {
            let (start, end) = (range.start().as_secs_f64(), range.end().as_secs_f64());
            Error::invalid(field, format!("must be in [{start} s, {end} s]"))
        })
}

/// A length of time from the wire that is in `range`, in whole milliseconds.
pub fn whole_millis(
    field: &str,
    value: Duration,
    range: &RangeInclusive<std::time::Duration>,
) -> Result<i64> {
    let length = duration(field, value, range)?;
    if length.subsec_nanos() % 1_000_000 != 0 {
        return Err(Error::invalid(field, "must be whole milliseconds"));
    }
    Ok(millis(length))
}

/// A length of time from the wire in whole seconds, of which `range` tells the bounds.
pub fn whole_seconds(field: &str, value: Duration, range: &RangeInclusive<i32>) -> Result<i32> {
    let seconds = i32::try_from(value.seconds).ok();
    seconds
        .filter(|seconds| value.nanos == 0 && range.contains(seconds))
        .ok_or_else(|| {
            let (start, end) = (range.start(), range.end());
            let problem = format!("must be whole seconds in [{start} s, {end} s]");
            Error::invalid(field, problem)
        })
}

/// An instant at which something has happened: not far in the future.
pub fn past(field: &str, time: Timestamp, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let time = from_proto(field, time)?;
    if time > now + AHEAD {
        return Err(Error::invalid(
            field,
            "must not be more than a day ahead of the server's clock",
        ));
    }
    Ok(time)
}

/// Start (inclusive) and end (exclusive), where there are.
pub type Bounds = (Option<DateTime<Utc>>, Option<DateTime<Utc>>);

/// Start and end of a range.
pub fn bounds(field: &str, range: Option<pb::TimeRange>) -> Result<Bounds> {
    let range = range.unwrap_or_default();
    let read = |name: &str, time: Option<Timestamp>| {
        time.map(|time| from_proto(&format!("{field}.{name}"), time))
            .transpose()
    };
    let (start, end) = (read("start", range.start)?, read("end", range.end)?);
    if let (Some(start), Some(end)) = (start, end)
        && end < start
    {
        return Err(Error::invalid(
            format!("{field}.end"),
            "must not be before the start",
        ));
    }
    Ok((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_times_that_databases_keep_are_read() {
        let at = |seconds, nanos| from_proto("t", Timestamp { seconds, nanos });
        assert_eq!(at(1, 1_999).unwrap().timestamp_subsec_nanos(), 1_000);
        for (seconds, nanos) in [
            (-1, 0),
            (LAST_YEAR + 1, 0),
            (i64::MAX, 0),
            (0, -1),
            (0, 1_000_000_000),
        ] {
            assert!(at(seconds, nanos).is_err(), "{seconds} {nanos}");
        }
    }

    #[test]
    fn the_future_is_refused_where_something_has_happened() {
        let now = Utc::now();
        assert!(past("t", to_proto(now + TimeDelta::hours(23)), now).is_ok());
        assert!(past("t", to_proto(now + TimeDelta::hours(25)), now).is_err());
    }
}
