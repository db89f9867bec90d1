//! What is asked for, within bounds.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::{MINUTE, sample};
use crate::{
    error::{Error, Result},
    pb::{self, GpuMetric},
    rpc::{check, time},
};

/// How many values an answer may have, buckets × GPUs × metrics.
const MOST_VALUES: i64 = 400_000;

/// How many minutes of GPUs may be read.
const MOST_MINUTES: i64 = 400_000;

/// The same where there is no use for roll-ups: 8 GPUs for a day.
const MOST_RAW_MINUTES: i64 = 11_520;

/// How wide a bucket may be, in milliseconds.
const NARROWEST: i64 = 1_000;
const WIDEST: i64 = 86_400_000;

/// The longest UUID.
const UUID: usize = 96;

/// How many GPUs a request may name.
const MOST_NAMED: usize = 1_000;

/// Which stretch of time, in which buckets, and which values. Times are milliseconds since 1970.
#[derive(Debug)]
pub(super) struct Plan {
    pub start: i64,
    pub end: i64,
    pub width: i64,
    pub metrics: Vec<GpuMetric>,
}

/// Which GPUs.
#[derive(Debug)]
pub(super) struct Chosen {
    /// None means all.
    pub uuids: BTreeSet<String>,
    /// Empty means any.
    pub host: String,
}

/// Checks all that can be checked without the database.
pub(super) fn parse(request: &pb::AggregateGpuStatsRequest) -> Result<(Plan, Chosen)> {
    let (start, end) = time::bounds("range", request.range)?;
    let start = start.ok_or_else(|| Error::invalid("range.start", "is required"))?;
    let end = end.ok_or_else(|| Error::invalid("range.end", "is required"))?;
    if start == end {
        return Err(Error::invalid("range.end", "must be after the start"));
    }
    let plan = Plan {
        start: start.timestamp_micros().div_euclid(1_000),
        end: ceil(end),
        width: width(request)?,
        metrics: metrics(&request.metrics)?,
    };
    if request.gpu_uuids.len() > MOST_NAMED {
        let problem = format!("must not name more than {MOST_NAMED} GPUs");
        return Err(Error::invalid("gpu_uuids", problem));
    }
    let uuids = request.gpu_uuids.iter().enumerate();
    let uuids = uuids.map(|(at, uuid)| check::text(&format!("gpu_uuids[{at}]"), uuid, 1..=UUID));
    let chosen = Chosen {
        uuids: uuids.collect::<Result<_>>()?,
        host: check::text("host", &request.host, 0..=255)?,
    };
    plan.check(1)?;
    Ok((plan, chosen))
}

fn ceil(end: DateTime<Utc>) -> i64 {
    -(-end.timestamp_micros()).div_euclid(1_000)
}

fn width(request: &pb::AggregateGpuStatsRequest) -> Result<i64> {
    const FIELD: &str = "bucket_width";
    let width = request.bucket_width;
    let width = width.ok_or_else(|| Error::invalid(FIELD, "is required"))?;
    if width.nanos % 1_000_000 != 0 {
        return Err(Error::invalid(FIELD, "must be whole milliseconds"));
    }
    let nanos = i64::from(width.nanos / 1_000_000);
    let millis = width.seconds.saturating_mul(1_000).saturating_add(nanos);
    if !(NARROWEST..=WIDEST).contains(&millis) || !(0..1_000).contains(&nanos) {
        return Err(Error::invalid(FIELD, "must be from 1 s to 86400 s"));
    }
    Ok(millis)
}

fn metrics(asked: &[i32]) -> Result<Vec<GpuMetric>> {
    if asked.is_empty() {
        return Ok(sample::metrics().collect());
    }
    let mut metrics = BTreeSet::new();
    for (at, number) in asked.iter().enumerate() {
        let problem = match GpuMetric::try_from(*number) {
            Ok(GpuMetric::Unspecified) => "must not be unspecified",
            Ok(metric) => {
                metrics.insert(metric);
                continue;
            }
            Err(_) => "is not a value that this server knows",
        };
        return Err(Error::invalid(format!("metrics[{at}]"), problem));
    }
    Ok(metrics.into_iter().collect())
}

impl Plan {
    /// How many buckets there are.
    pub(super) fn buckets(&self) -> i64 {
        (self.end - 1).div_euclid(self.width) - self.start.div_euclid(self.width) + 1
    }

    /// In which bucket a time lies.
    pub(super) fn bucket(&self, at: i64) -> usize {
        let bucket = at.div_euclid(self.width) - self.start.div_euclid(self.width);
        usize::try_from(bucket).unwrap_or_default()
    }

    /// When a bucket starts.
    pub(super) fn bucket_start(&self, bucket: usize) -> i64 {
        let bucket = i64::try_from(bucket).unwrap_or(i64::MAX);
        (self.start.div_euclid(self.width) + bucket) * self.width
    }

    /// The minutes that the range lies in, and the first after them.
    pub(super) fn minutes(&self) -> (i64, i64) {
        let last = (self.end - 1).div_euclid(MINUTE);
        (self.start.div_euclid(MINUTE), last + 1)
    }

    /// Whether a minute is not whole in one bucket.
    pub(super) fn parts(&self, minute: i64) -> bool {
        let (from, until) = (minute * MINUTE, (minute + 1) * MINUTE);
        from < self.start
            || until > self.end
            || from.div_euclid(self.width) != (until - 1).div_euclid(self.width)
    }

    fn is_whole_minutes(&self) -> bool {
        self.width % MINUTE == 0
    }

    /// Refuses what would be too much for so many GPUs.
    pub(super) fn check(&self, gpus: usize) -> Result<()> {
        let gpus = i64::try_from(gpus).unwrap_or(i64::MAX);
        let (first, end) = self.minutes();
        let minutes = (end - first).saturating_mul(gpus);
        let most = if self.is_whole_minutes() {
            MOST_MINUTES
        } else {
            MOST_RAW_MINUTES
        };
        if minutes > most {
            let kind = if self.is_whole_minutes() {
                ""
            } else {
                " unless buckets are whole minutes"
            };
            let problem = format!(
                "must be nearer: {gpus} GPUs for {minutes} minutes in all, {most} at most{kind}"
            );
            return Err(Error::invalid("range.end", problem));
        }
        let (buckets, metrics) = (self.buckets(), self.metrics.len());
        let values = buckets
            .saturating_mul(gpus)
            .saturating_mul(metrics.try_into().unwrap_or(i64::MAX));
        if values > MOST_VALUES {
            let problem = format!(
                "must be larger: {buckets} buckets of {metrics} metrics of {gpus} GPUs are more than {MOST_VALUES} values"
            );
            return Err(Error::invalid("bucket_width", problem));
        }
        Ok(())
    }

    /// Widens the range to whole minutes where samples are no longer kept, which is before `raw_from`.
    pub(super) fn keep_to(&mut self, raw_from: i64) -> Result<()> {
        let (first, end) = self.minutes();
        if first >= raw_from {
            return Ok(());
        }
        if !self.is_whole_minutes() {
            let from = time::from_millis(raw_from * MINUTE).unwrap_or_default();
            let from = from.format("%Y-%m-%dT%H:%MZ");
            let problem = format!("must be whole minutes, since samples are only kept from {from}");
            return Err(Error::invalid("bucket_width", problem));
        }
        self.start = first * MINUTE;
        if end <= raw_from {
            self.end = end * MINUTE;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(start: i64, end: i64, width: i64) -> Plan {
        let metrics = vec![GpuMetric::Temperature];
        Plan {
            start,
            end,
            width,
            metrics,
        }
    }

    #[test]
    fn buckets_start_at_multiples_of_their_width() {
        let plan = plan(90_000, 300_001, 60_000);
        assert_eq!((plan.buckets(), plan.minutes()), (5, (1, 6)));
        assert_eq!((plan.bucket(90_000), plan.bucket_start(0)), (0, 60_000));
        assert_eq!((plan.bucket(300_000), plan.bucket_start(4)), (4, 300_000));
        let parted: Vec<_> = (1..6).map(|minute| plan.parts(minute)).collect();
        assert_eq!(parted, [true, false, false, false, true]);
    }

    #[test]
    fn minutes_in_two_buckets_are_parted() {
        let plan = plan(0, 360_000, 90_000);
        let parted: Vec<_> = (0..6).map(|minute| plan.parts(minute)).collect();
        assert_eq!(parted, [false, true, false, false, true, false]);
    }

    #[test]
    fn where_only_minutes_are_kept_the_range_is_whole_minutes() {
        let mut wide = plan(90_000, 250_000, 60_000);
        wide.keep_to(1).unwrap();
        assert_eq!((wide.start, wide.end), (90_000, 250_000));
        wide.keep_to(2).unwrap();
        assert_eq!((wide.start, wide.end), (60_000, 250_000));
        wide.keep_to(5).unwrap();
        assert_eq!((wide.start, wide.end), (60_000, 300_000));
        let mut narrow = plan(90_000, 250_000, 10_000);
        assert!(narrow.keep_to(1).is_ok());
        assert!(narrow.keep_to(2).is_err());
    }
}
