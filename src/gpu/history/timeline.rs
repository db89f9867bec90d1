//! Times of samples, throttling and energy of one GPU, bucket by bucket.

use super::{
    digest::{EnergyRun, Summary},
    request::AggregatePlan,
};
use crate::{
    gpu::throttle::{REASONS, unnamed_bits},
    pb::{self, ThrottleReason},
    rpc::time,
};

/// Samples in order. Times are milliseconds since 1970.
#[derive(Debug)]
pub(super) struct Timeline {
    /// Times of the samples. The first may be before the range.
    times: Vec<i64>,
    /// Runs of samples with the same mask or without a mask: number of samples, and mask.
    masks: Vec<(usize, Option<u64>)>,
    /// Epoch and value of the last energy reading.
    reading: Option<(i64, i64)>,
    buckets: Vec<Tally>,
}

/// Totals of one bucket. Times are milliseconds.
#[derive(Debug, Clone, Default)]
struct Tally {
    samples: i64,
    energy: Option<i64>,
    covered: i64,
    observed: i64,
    /// Time of each reason, in the order of `REASONS`.
    throttled: [i64; REASONS.len()],
    /// Time with any bit that has no name, and all such bits.
    unnamed: (i64, u64),
}

impl Timeline {
    pub(super) fn new(buckets: usize) -> Self {
        Self { times: Vec::new(), masks: Vec::new(), reading: None, buckets: vec![Tally::default(); buckets] }
    }

    /// Number of samples.
    pub(super) fn len(&self) -> usize {
        self.times.len()
    }

    /// Takes the last sample of the summary as the sample before the range.
    pub(super) fn lead_in(&mut self, start: i64, summary: &Summary) {
        let last = summary.times(start).last();
        let last_mask = summary.throttle.last().and_then(|run| run.mask);
        self.reading = summary.energy.last().map(|run| (run.epoch, run.last));
        self.times.extend(last);
        self.masks.extend(last.map(|_| (1, last_mask)));
    }

    /// Adds samples to a bucket, in the order of time. `start` is the start of the encoded minute.
    pub(super) fn add(&mut self, bucket: usize, start: i64, summary: &Summary) {
        let old_count = self.times.len();
        self.times.extend(summary.times(start));
        let runs = summary.throttle.iter();
        self.masks.extend(runs.map(|run| (usize::try_from(run.samples).unwrap_or(usize::MAX), run.mask)));
        let tally = &mut self.buckets[bucket];
        tally.samples += i64::try_from(self.times.len() - old_count).unwrap_or(i64::MAX);
        for run in &summary.energy {
            let energy = tally.energy.unwrap_or_default();
            if let Some(used) = used(self.reading, *run) {
                tally.energy = Some(energy + used);
            }
            self.reading = Some((run.epoch, run.last));
        }
    }

    /// Sampling interval, if known, and the buckets.
    pub(super) fn finish(mut self, plan: &AggregatePlan, now: i64) -> (Option<i64>, Vec<pb::GpuBucket>) {
        let interval = median(&self.times);
        let end = plan.end.min(now);
        if let Some(interval) = interval {
            self.cover(plan, interval, end);
        }
        // Without samples, the whole time counts as a gap at any interval.
        let is_known = interval.is_some() || self.times.is_empty();
        let tallies = self.buckets.iter().enumerate();
        let buckets = tallies.map(|(index, tally)| {
            let from = plan.bucket_start(index);
            let requested = (from + plan.width).min(end) - from.max(plan.start);
            tally.to_bucket(from, is_known.then(|| requested.max(0) - tally.covered), interval)
        });
        (interval, buckets.collect())
    }

    fn cover(&mut self, plan: &AggregatePlan, interval: i64, end: i64) {
        let masks = self.masks.iter().flat_map(|(samples, mask)| std::iter::repeat_n(*mask, *samples));
        let next = self.times.iter().skip(1).map(Some).chain([None]);
        for ((at, next), mask) in self.times.iter().zip(next).zip(masks) {
            let until = match next {
                Some(next) if is_adjacent(next - at, interval) => *next,
                Some(_) => at + interval,
                None => at + interval * 3 / 2,
            };
            let (mut from, until) = ((*at).max(plan.start), until.min(end));
            while from < until {
                let bucket = plan.bucket(from);
                let to = until.min(plan.bucket_start(bucket + 1));
                self.buckets[bucket].cover(to - from, mask);
                from = to;
            }
        }
    }
}

/// Returns true if no sample is missing between two samples at this distance.
fn is_adjacent(distance: i64, interval: i64) -> bool {
    distance * 2 <= interval * 3
}

/// Energy used between the previous reading and the last reading of the run.
fn used(before: Option<(i64, i64)>, run: EnergyRun) -> Option<i64> {
    let within = (run.readings > 1).then_some(run.last - run.first);
    let until = before
        .filter(|(epoch, reading)| *epoch == run.epoch && *reading <= run.first)
        .map(|(_, reading)| run.first - reading);
    match (until, within) {
        (None, None) => None,
        (until, within) => Some(until.unwrap_or_default() + within.unwrap_or_default()),
    }
}

/// Lower median of the distances between samples. Samples at the same time are ignored.
fn median(times: &[i64]) -> Option<i64> {
    let mut distances: Vec<_> =
        times.windows(2).map(|pair| pair[1] - pair[0]).filter(|distance| *distance > 0).collect();
    let middle = distances.len().checked_sub(1)? / 2;
    Some(*distances.select_nth_unstable(middle).1)
}

impl Tally {
    fn cover(&mut self, time: i64, mask: Option<u64>) {
        self.covered += time;
        let Some(mask) = mask else { return };
        self.observed += time;
        if mask == 0 || time == 0 {
            return;
        }
        for ((bit, _), throttled) in REASONS.iter().zip(&mut self.throttled) {
            if mask & bit != 0 {
                *throttled += time;
            }
        }
        let bits = unnamed_bits(mask);
        if bits != 0 {
            self.unnamed = (self.unnamed.0 + time, self.unnamed.1 | bits);
        }
    }

    /// Bucket that starts at `from`.
    fn to_bucket(&self, from: i64, gap: Option<i64>, interval: Option<i64>) -> pb::GpuBucket {
        let (other, bits) = self.unnamed;
        let named = REASONS.into_iter().zip(self.throttled);
        let mut throttle: Vec<_> = named
            .chain([((bits, ThrottleReason::Other), other)])
            .filter(|(_, time)| *time > 0)
            .map(|((bits, reason), time)| pb::ThrottleTime {
                reason: reason.into(),
                time: Some(time::duration_from_millis(time)),
                bits,
            })
            .collect();
        throttle.sort_unstable_by_key(|throttle| throttle.reason);
        let gap_and_interval = gap.zip(interval);
        pb::GpuBucket {
            start: time::from_millis(from).map(time::to_proto),
            samples: self.samples,
            gap: gap.map(time::duration_from_millis),
            missing_samples: gap_and_interval.map(|(gap, interval)| (gap + interval / 2) / interval),
            throttle_observed: interval.map(|_| time::duration_from_millis(self.observed)),
            throttle,
            energy: self.energy,
        }
    }
}
