//! When one GPU was sampled, what held its clocks down, and the energy it used, bucket by bucket.

use super::{
    digest::{EnergyRun, Summary},
    request::Plan,
};
use crate::{
    error::Result,
    gpu::throttle::{REASONS, unnamed},
    pb::{self, ThrottleReason},
    rpc::time,
};

/// Samples in order. Times are milliseconds.
#[derive(Debug)]
pub(super) struct Timeline {
    /// The first may lie before the range.
    times: Vec<i64>,
    /// How many of them have the same mask, or none.
    masks: Vec<(usize, Option<u64>)>,
    /// The last energy reading, and its epoch.
    reading: Option<(i64, i64)>,
    buckets: Vec<Tally>,
}

/// What is counted in one bucket.
#[derive(Debug, Clone, Default)]
struct Tally {
    samples: i64,
    energy: Option<i64>,
    covered: i64,
    observed: i64,
    /// For how long each reason held, as in `REASONS`.
    throttled: [i64; REASONS.len()],
    /// For how long a bit without a name was set, and which bits these were.
    unnamed: (i64, u64),
}

impl Timeline {
    pub(super) fn new(buckets: usize) -> Self {
        Self {
            times: Vec::new(),
            masks: Vec::new(),
            reading: None,
            buckets: vec![Tally::default(); buckets],
        }
    }

    /// How many samples there are.
    pub(super) fn len(&self) -> usize {
        self.times.len()
    }

    /// Takes the last of these samples for the one before the range.
    pub(super) fn lead_in(&mut self, start: i64, summary: &Summary<'_>) -> Result<()> {
        let (mut last, mut last_mask) = (None, None);
        summary.times(start, |at| last = Some(at))?;
        summary.throttle(|_, mask| last_mask = mask)?;
        summary.energy(|run| self.reading = Some((run.epoch, run.last)))?;
        self.times.extend(last);
        self.masks.extend(last.map(|_| (1, last_mask)));
        Ok(())
    }

    /// Adds samples to a bucket, none of them before those of the last call. `start` is what they were
    /// encoded with.
    pub(super) fn add(&mut self, bucket: usize, start: i64, summary: &Summary<'_>) -> Result<()> {
        let before = self.times.len();
        summary.times(start, |at| self.times.push(at))?;
        summary.throttle(|samples, mask| {
            let samples = usize::try_from(samples).unwrap_or(usize::MAX);
            self.masks.push((samples, mask));
        })?;
        let tally = &mut self.buckets[bucket];
        tally.samples += i64::try_from(self.times.len() - before).unwrap_or(i64::MAX);
        summary.energy(|run| {
            let energy = tally.energy.unwrap_or_default();
            if let Some(used) = used(self.reading, run) {
                tally.energy = Some(energy + used);
            }
            self.reading = Some((run.epoch, run.last));
        })
    }

    /// The interval, if it is known, and the buckets.
    pub(super) fn finish(mut self, plan: &Plan, now: i64) -> (Option<i64>, Vec<pb::GpuBucket>) {
        let interval = median(&self.times);
        let end = plan.end.min(now);
        if let Some(interval) = interval {
            self.cover(plan, interval, end);
        }
        // Without any sample nothing is covered, however often there should be one.
        let known = interval.is_some() || self.times.is_empty();
        let buckets = self.buckets.iter().enumerate();
        let buckets = buckets.map(|(at, tally)| {
            let from = plan.bucket_start(at);
            let asked = (from + plan.width).min(end) - from.max(plan.start);
            tally.told(from, known.then(|| asked.max(0) - tally.covered), interval)
        });
        (interval, buckets.collect())
    }

    fn cover(&mut self, plan: &Plan, interval: i64, end: i64) {
        let masks = self.masks.iter();
        let masks = masks.flat_map(|(samples, mask)| std::iter::repeat_n(*mask, *samples));
        let next = self.times.iter().skip(1).map(Some).chain([None]);
        for ((at, next), mask) in self.times.iter().zip(next).zip(masks) {
            let until = match next {
                Some(next) if is_next(next - at, interval) => *next,
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

/// Whether a sample that comes so much later than another is the one after it.
fn is_next(distance: i64, interval: i64) -> bool {
    distance * 2 <= interval * 3
}

/// What was used between the reading before and the last one of these.
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

/// The lower median of the distances. Two samples at one time have none.
fn median(times: &[i64]) -> Option<i64> {
    let distances = times.windows(2).map(|pair| pair[1] - pair[0]);
    let mut distances: Vec<_> = distances.filter(|distance| *distance > 0).collect();
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
        let bits = unnamed(mask);
        if bits != 0 {
            self.unnamed = (self.unnamed.0 + time, self.unnamed.1 | bits);
        }
    }

    /// The bucket that starts at `from`.
    fn told(&self, from: i64, gap: Option<i64>, interval: Option<i64>) -> pb::GpuBucket {
        let (other, bits) = self.unnamed;
        let named = REASONS.into_iter().zip(self.throttled);
        let throttle = named.chain([((bits, ThrottleReason::Other), other)]);
        let throttle = throttle.filter(|(_, time)| *time > 0);
        let throttle = throttle.map(|((bits, reason), time)| pb::ThrottleTime {
            reason: reason.into(),
            time: Some(time::duration_from_millis(time)),
            bits,
        });
        let mut throttle: Vec<_> = throttle.collect();
        throttle.sort_unstable_by_key(|throttle| throttle.reason);
        let missing = gap.zip(interval);
        pb::GpuBucket {
            start: time::from_millis(from).map(time::to_proto),
            samples: self.samples,
            gap: gap.map(time::duration_from_millis),
            missing_samples: missing.map(|(gap, interval)| (gap + interval / 2) / interval),
            throttle_observed: interval.map(|_| time::duration_from_millis(self.observed)),
            throttle,
            energy: self.energy,
        }
    }
}
