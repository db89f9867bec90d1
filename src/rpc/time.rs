//! Times and durations: UTC with microseconds in the server, protobuf well-known types in the API.

use std::ops::RangeInclusive;

use chrono::{DateTime, TimeDelta, Utc};
use prost_types::{Duration, Timestamp};

use crate::{
    error::{Error, Result},
    pb,
};

/// Maximum time by which a client's clock may be ahead of the server's clock.
const MAX_AHEAD: TimeDelta = TimeDelta::days(1);

/// Last second of the supported years.
const LAST_SECOND: i64 = 253_402_300_799; // 9999-12-31T23:59:59Z

/// Longest duration of the API, about 10,000 years.
pub const MAX_DURATION: std::time::Duration = std::time::Duration::from_hours(87_660_000);

/// Converts a time for the API.
pub fn to_proto(time: DateTime<Utc>) -> Timestamp {
    // Nanoseconds are below 10^9, or 2 * 10^9 in a leap second.
    let nanos = i32::try_from(time.timestamp_subsec_nanos()).unwrap_or(0).min(999_999_999);
    Timestamp { seconds: time.timestamp(), nanos }
}

/// Converts a time from the API: years 1970 to 9999, truncated to microseconds, the precision of
/// the databases.
pub fn from_proto(field: &str, time: Timestamp) -> Result<DateTime<Utc>> {
    if !(0..=LAST_SECOND).contains(&time.seconds) {
        return Err(Error::invalid(field, "must be a time from 1970 to 9999"));
    }
    let nanos = u32::try_from(time.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    nanos
        .and_then(|nanos| DateTime::from_timestamp(time.seconds, nanos / 1_000 * 1_000))
        .ok_or_else(|| Error::invalid(field, "must have nanos in [0, 999999999]"))
}

/// Converts microseconds since 1970; `None` outside of the years 1970 to 9999.
pub fn from_micros(micros: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(micros).filter(|time| (0..=LAST_SECOND).contains(&time.timestamp()))
}

/// Converts milliseconds since 1970; `None` outside of the years 1970 to 9999.
pub fn from_millis(millis: i64) -> Option<DateTime<Utc>> {
    from_micros(millis.checked_mul(1_000)?)
}

/// Converts a duration in milliseconds for the API.
pub fn duration_from_millis(millis: i64) -> Duration {
    let nanos = i32::try_from(millis % 1_000 * 1_000_000).unwrap_or(0);
    Duration { seconds: millis / 1_000, nanos }
}

/// Converts microseconds to a duration of the API.
pub fn duration_from_micros(micros: i64) -> Duration {
    let nanos = i32::try_from(micros % 1_000_000 * 1_000).unwrap_or(0);
    Duration { seconds: micros / 1_000_000, nanos }
}

/// Converts whole seconds to a duration of the API.
pub fn duration_from_seconds(seconds: i32) -> Duration {
    Duration { seconds: seconds.into(), nanos: 0 }
}

/// Converts seconds to a duration of the API. `None` for a negative duration, or one beyond [`MAX_DURATION`].
pub fn duration_from_seconds_f64(seconds: f64) -> Option<Duration> {
    let duration = std::time::Duration::try_from_secs_f64(seconds).ok()?;
    let duration = Some(duration).filter(|duration| *duration <= MAX_DURATION)?;
    duration.try_into().ok()
}

/// Converts a duration for the API.
pub fn duration_to_proto(length: std::time::Duration) -> Duration {
    duration_from_millis(millis(length))
}

/// Converts a duration to whole milliseconds.
pub fn millis(length: std::time::Duration) -> i64 {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX)
}

/// Converts a duration from the API, which must be in `range`.
pub fn duration(
    field: &str,
    value: Duration,
    range: &RangeInclusive<std::time::Duration>,
) -> Result<std::time::Duration> {
    // The conversion of `prost_types` overflows if both parts are far below zero.
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

/// Converts a duration of the API to whole milliseconds. Fails outside of `range`, and for fractions of a millisecond.
pub fn whole_millis(field: &str, value: Duration, range: &RangeInclusive<std::time::Duration>) -> Result<i64> {
    let length = duration(field, value, range)?;
    if length.subsec_nanos() % 1_000_000 != 0 {
        return Err(Error::invalid(field, "must be whole milliseconds"));
    }
    Ok(millis(length))
}

/// Converts a duration of the API to whole seconds. Fails outside of `range`, and for fractions of a second.
pub fn whole_seconds(field: &str, value: Duration, range: &RangeInclusive<i32>) -> Result<i32> {
    let seconds = i32::try_from(value.seconds).ok();
    seconds.filter(|seconds| value.nanos == 0 && range.contains(seconds)).ok_or_else(|| {
        let (start, end) = (range.start(), range.end());
        let problem = format!("must be whole seconds in [{start} s, {end} s]");
        Error::invalid(field, problem)
    })
}

/// Converts the time of a past event, at most a day ahead of `now`.
pub fn past(field: &str, time: Timestamp, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let time = from_proto(field, time)?;
    if time > now + MAX_AHEAD {
        return Err(Error::invalid(field, "must not be more than a day ahead of the server's clock"));
    }
    Ok(time)
}

/// Start (inclusive) and end (exclusive); absent bounds are open.
pub type Bounds = (Option<DateTime<Utc>>, Option<DateTime<Utc>>);

/// Converts a time range. The end must not be before the start.
pub fn bounds(field: &str, range: Option<pb::TimeRange>) -> Result<Bounds> {
    let range = range.unwrap_or_default();
    let read =
        |name: &str, time: Option<Timestamp>| time.map(|time| from_proto(&format!("{field}.{name}"), time)).transpose();
    let (start, end) = (read("start", range.start)?, read("end", range.end)?);
    if let (Some(start), Some(end)) = (start, end)
        && end < start
    {
        return Err(Error::invalid(format!("{field}.end"), "must not be before the start"));
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
        for (seconds, nanos) in [(-1, 0), (LAST_SECOND + 1, 0), (i64::MAX, 0), (0, -1), (0, 1_000_000_000)] {
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
