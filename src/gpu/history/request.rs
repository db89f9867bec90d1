//! Validation of `AggregateGpuStats` requests.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::{queries::MINUTE_MS, sample};
use crate::{
    error::{Error, Result},
    pb::{self, GpuMetric},
    rpc::{check, time},
};

/// Upper bound of values in an answer: buckets × GPUs × metrics.
const MAX_VALUES: i64 = 400_000;

/// Upper bound of minutes × GPUs that are read from roll-ups.
const MAX_MINUTES: i64 = 400_000;

/// Upper bound of minutes × GPUs that are read from samples: 8 GPUs for a day.
const MAX_RAW_MINUTES: i64 = 11_520;

/// Bounds of the width of a bucket, in milliseconds.
const MIN_BUCKET_MS: i64 = 1_000;
const MAX_BUCKET_MS: i64 = 86_400_000;

/// Upper bound of the length of a UUID, in characters.
const MAX_UUID_CHARS: usize = 96;

/// Upper bound of GPUs that a request may name.
const MAX_GPU_UUIDS: usize = 1_000;

/// Requested range, bucket width and metrics. Times are milliseconds since 1970.
#[derive(Debug)]
pub(super) struct AggregatePlan {
    pub start: i64,
    pub end: i64,
    pub width: i64,
    pub metrics: Vec<GpuMetric>,
}

/// Filter of GPUs.
#[derive(Debug)]
pub(super) struct GpuFilter {
    /// UUIDs of the GPUs. Empty means all.
    pub uuids: BTreeSet<String>,
    /// Host of the GPUs. Empty means any.
    pub host: String,
}

/// Checks the request, as far as possible without the database.
pub(super) fn parse(request: &pb::AggregateGpuStatsRequest) -> Result<(AggregatePlan, GpuFilter)> {
    let (start, end) = time::bounds("range", request.range)?;
    let start = start.ok_or_else(|| Error::invalid("range.start", "is required"))?;
    let end = end.ok_or_else(|| Error::invalid("range.end", "is required"))?;
    if start == end {
        return Err(Error::invalid("range.end", "must be after the start"));
    }
    let plan = AggregatePlan {
        start: start.timestamp_micros().div_euclid(1_000),
        end: ceil(end),
        width: width(request)?,
        metrics: metrics(&request.metrics)?,
    };
    if request.gpu_uuids.len() > MAX_GPU_UUIDS {
        let problem = format!("must not name more than {MAX_GPU_UUIDS} GPUs");
        return Err(Error::invalid("gpu_uuids", problem));
    }
    let uuids = request
        .gpu_uuids
        .iter()
        .enumerate()
        .map(|(index, uuid)| check::text(&format!("gpu_uuids[{index}]"), uuid, 1..=MAX_UUID_CHARS));
    let filter = GpuFilter { uuids: uuids.collect::<Result<_>>()?, host: check::text("host", &request.host, 0..=255)? };
    plan.check(1)?;
    Ok((plan, filter))
}

fn ceil(end: DateTime<Utc>) -> i64 {
    -(-end.timestamp_micros()).div_euclid(1_000)
}

fn width(request: &pb::AggregateGpuStatsRequest) -> Result<i64> {
    const FIELD: &str = "bucket_width";
    let width = request.bucket_width.ok_or_else(|| Error::invalid(FIELD, "is required"))?;
    if width.nanos % 1_000_000 != 0 {
        return Err(Error::invalid(FIELD, "must be whole milliseconds"));
    }
    let sub_millis = i64::from(width.nanos / 1_000_000);
    let millis = width.seconds.saturating_mul(1_000).saturating_add(sub_millis);
    if !(MIN_BUCKET_MS..=MAX_BUCKET_MS).contains(&millis) || !(0..1_000).contains(&sub_millis) {
        return Err(Error::invalid(FIELD, "must be from 1 s to 86400 s"));
    }
    Ok(millis)
}

fn metrics(requested: &[i32]) -> Result<Vec<GpuMetric>> {
    if requested.is_empty() {
        return Ok(sample::metrics().collect());
    }
    let mut metrics = BTreeSet::new();
    for (index, number) in requested.iter().enumerate() {
        let problem = match GpuMetric::try_from(*number) {
            Ok(GpuMetric::Unspecified) => "must not be unspecified",
            Ok(metric) => {
                metrics.insert(metric);
                continue;
            }
            Err(_) => "is not a value that this server knows",
        };
        return Err(Error::invalid(format!("metrics[{index}]"), problem));
    }
    Ok(metrics.into_iter().collect())
}

impl AggregatePlan {
    /// Number of buckets.
    pub(super) fn buckets(&self) -> i64 {
        (self.end - 1).div_euclid(self.width) - self.start.div_euclid(self.width) + 1
    }

    /// Index of the bucket that contains the time.
    pub(super) fn bucket(&self, at: i64) -> usize {
        let bucket = at.div_euclid(self.width) - self.start.div_euclid(self.width);
        usize::try_from(bucket).unwrap_or_default()
    }

    /// Start of the bucket with the index.
    pub(super) fn bucket_start(&self, bucket: usize) -> i64 {
        let bucket = i64::try_from(bucket).unwrap_or(i64::MAX);
        (self.start.div_euclid(self.width) + bucket) * self.width
    }

    /// First minute of the range, and the first minute after the range.
    pub(super) fn minutes(&self) -> (i64, i64) {
        let last = (self.end - 1).div_euclid(MINUTE_MS);
        (self.start.div_euclid(MINUTE_MS), last + 1)
    }

    /// Returns true if the minute is not entirely within the range and one bucket.
    pub(super) fn is_split(&self, minute: i64) -> bool {
        let (from, until) = (minute * MINUTE_MS, (minute + 1) * MINUTE_MS);
        from < self.start || until > self.end || from.div_euclid(self.width) != (until - 1).div_euclid(self.width)
    }

    fn is_whole_minutes(&self) -> bool {
        self.width % MINUTE_MS == 0
    }

    /// Fails if the request is too large for the number of GPUs.
    pub(super) fn check(&self, gpus: usize) -> Result<()> {
        let gpus = i64::try_from(gpus).unwrap_or(i64::MAX);
        let (first, end) = self.minutes();
        let minutes = (end - first).saturating_mul(gpus);
        let limit = if self.is_whole_minutes() { MAX_MINUTES } else { MAX_RAW_MINUTES };
        if minutes > limit {
            let kind = if self.is_whole_minutes() { "" } else { " unless buckets are whole minutes" };
            let problem = format!("must be nearer: {gpus} GPUs for {minutes} minutes in all, {limit} at most{kind}");
            return Err(Error::invalid("range.end", problem));
        }
        let (buckets, metrics) = (self.buckets(), self.metrics.len());
        let values = buckets.saturating_mul(gpus).saturating_mul(metrics.try_into().unwrap_or(i64::MAX));
        if values > MAX_VALUES {
            let problem = format!(
                "must be larger: {buckets} buckets of {metrics} metrics of {gpus} GPUs are more than {MAX_VALUES} values"
            );
            return Err(Error::invalid("bucket_width", problem));
        }
        Ok(())
    }

    /// Extends the range to whole minutes before `raw_from`, where samples may be deleted. Fails if
    /// buckets are not whole minutes.
    pub(super) fn align_to_retention(&mut self, raw_from: i64) -> Result<()> {
        let (first, end) = self.minutes();
        if first >= raw_from {
            return Ok(());
        }
        if !self.is_whole_minutes() {
            let start = time::from_millis(raw_from * MINUTE_MS).unwrap_or_default();
            let from = start.format("%Y-%m-%dT%H:%MZ");
            let problem = format!("must be whole minutes, since samples are only kept from {from}");
            return Err(Error::invalid("bucket_width", problem));
        }
        self.start = first * MINUTE_MS;
        if end <= raw_from {
            self.end = end * MINUTE_MS;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(start: i64, end: i64, width: i64) -> AggregatePlan {
        let metrics = vec![GpuMetric::Temperature];
        AggregatePlan { start, end, width, metrics }
    }

    #[test]
    fn buckets_start_at_multiples_of_their_width() {
        let plan = plan(90_000, 300_001, 60_000);
        assert_eq!((plan.buckets(), plan.minutes()), (5, (1, 6)));
        assert_eq!((plan.bucket(90_000), plan.bucket_start(0)), (0, 60_000));
        assert_eq!((plan.bucket(300_000), plan.bucket_start(4)), (4, 300_000));
        let parted: Vec<_> = (1..6).map(|minute| plan.is_split(minute)).collect();
        assert_eq!(parted, [true, false, false, false, true]);
    }

    #[test]
    fn minutes_in_two_buckets_are_parted() {
        let plan = plan(0, 360_000, 90_000);
        let parted: Vec<_> = (0..6).map(|minute| plan.is_split(minute)).collect();
        assert_eq!(parted, [false, true, false, false, true, false]);
    }

    #[test]
    fn where_only_minutes_are_kept_the_range_is_whole_minutes() {
        let mut wide = plan(90_000, 250_000, 60_000);
        wide.align_to_retention(1).unwrap();
        assert_eq!((wide.start, wide.end), (90_000, 250_000));
        wide.align_to_retention(2).unwrap();
        assert_eq!((wide.start, wide.end), (60_000, 250_000));
        wide.align_to_retention(5).unwrap();
        assert_eq!((wide.start, wide.end), (60_000, 300_000));
        let mut narrow = plan(90_000, 250_000, 10_000);
        assert!(narrow.align_to_retention(1).is_ok());
        assert!(narrow.align_to_retention(2).is_err());
    }
}
