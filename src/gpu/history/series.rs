//! The values of one GPU, bucket by bucket.

use super::{
    digest::{self, Summary},
    sample::{METRICS, metrics},
};
use crate::{error::Result, pb};

/// With how many different values a bucket of many minutes is tidied up for the first time.
const TIDY: usize = 16_384;

/// Values and how often they were measured.
#[derive(Debug, Default)]
pub(super) struct Distribution {
    counts: Vec<(f64, u64)>,
    last: f64,
    /// In how many stretches the values ascend, at most.
    stretches: usize,
    /// The length at which to tidy up next.
    tidy_at: usize,
}

impl Distribution {
    /// Where to append values that ascend, each once.
    pub(super) fn more(&mut self) -> &mut Vec<(f64, u64)> {
        if self.counts.len() >= self.tidy_at.max(TIDY) {
            self.tidy();
            self.tidy_at = self.counts.len() * 2;
        }
        self.stretches += 1;
        &mut self.counts
    }

    pub(super) fn set_last(&mut self, value: f64) {
        self.last = value;
    }

    /// Brings the values into order, each once.
    fn tidy(&mut self) {
        if self.stretches < 2 {
            return;
        }
        self.counts.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        #[expect(clippy::float_cmp, reason = "what was measured is not rounded")]
        self.counts.dedup_by(|next, before| {
            let same = next.0 == before.0;
            if same {
                before.1 += next.1;
            }
            same
        });
        self.stretches = 1;
    }

    /// Sums up, and starts anew.
    #[expect(clippy::cast_precision_loss, reason = "a mean is rounded anyway")]
    pub(super) fn summary(&mut self) -> pb::GpuMetricBucket {
        self.tidy();
        let samples: u64 = self.counts.iter().map(|(_, count)| count).sum();
        let (Some((min, _)), Some((max, _))) = (self.counts.first(), self.counts.last()) else {
            return pb::GpuMetricBucket::default();
        };
        let (min, max) = (*min, *max);
        let rank = (samples * 95).div_ceil(100);
        let (mut sum, mut seen, mut p95) = (0.0, 0, max);
        for (value, count) in &self.counts {
            sum += value * *count as f64;
            if seen < rank && seen + count >= rank {
                p95 = *value;
            }
            seen += count;
        }
        self.counts.clear();
        self.stretches = 0;
        pb::GpuMetricBucket {
            samples: samples.cast_signed(),
            // Rounding may have left the range.
            avg: Some((sum / samples as f64).clamp(min, max)),
            min: Some(min),
            max: Some(max),
            p95: Some(p95),
            last: Some(self.last),
        }
    }
}

/// The metrics that are asked for, and the bucket at hand.
#[derive(Debug)]
pub(super) struct Series {
    values: [Option<Distribution>; METRICS],
    done: Vec<pb::GpuMetricSeries>,
    /// How many buckets are done.
    bucket: usize,
    /// Whether there are values for the one at hand.
    touched: bool,
}

impl Series {
    pub(super) fn new(wanted: &[pb::GpuMetric], buckets: usize) -> Self {
        let mut values = [const { None }; METRICS];
        let mut done = Vec::new();
        for (place, metric) in values.iter_mut().zip(metrics()) {
            if wanted.contains(&metric) {
                *place = Some(Distribution::default());
                done.push(pb::GpuMetricSeries {
                    metric: metric.into(),
                    buckets: Vec::with_capacity(buckets),
                });
            }
        }
        Self {
            values,
            done,
            bucket: 0,
            touched: false,
        }
    }

    /// Adds values to a bucket, which is none before that of the last call.
    pub(super) fn add(&mut self, bucket: usize, distribution: &[u8]) -> Result<()> {
        self.proceed(bucket);
        self.touched = true;
        digest::add_values(distribution, &mut self.values)
    }

    /// Takes what is told of a minute for a bucket that has nothing else.
    pub(super) fn put(&mut self, bucket: usize, summary: &Summary<'_>) -> Result<()> {
        self.proceed(bucket);
        let mut all = [pb::GpuMetricBucket::default(); METRICS];
        summary.told(|metric, told| {
            if let Some(place) = all.get_mut(metric) {
                *place = told;
            }
        })?;
        let told = all.into_iter().zip(&self.values);
        let told = told.filter_map(|(told, wanted)| wanted.is_some().then_some(told));
        for (series, told) in self.done.iter_mut().zip(told) {
            series.buckets.push(told);
        }
        self.bucket = bucket + 1;
        Ok(())
    }

    /// Goes on to a bucket.
    fn proceed(&mut self, bucket: usize) {
        if self.touched && self.bucket < bucket {
            let values = self.values.iter_mut().flatten();
            for (series, values) in self.done.iter_mut().zip(values) {
                series.buckets.push(values.summary());
            }
            self.bucket += 1;
            self.touched = false;
        }
        if self.bucket < bucket {
            for series in &mut self.done {
                series
                    .buckets
                    .resize(bucket, pb::GpuMetricBucket::default());
            }
            self.bucket = bucket;
        }
    }

    pub(super) fn finish(mut self, buckets: usize) -> Vec<pb::GpuMetricSeries> {
        self.proceed(buckets);
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> pb::GpuMetricBucket {
        let mut distribution = Distribution::default();
        for value in values {
            distribution.more().push((*value, 1));
            distribution.set_last(*value);
        }
        distribution.summary()
    }

    #[test]
    fn the_percentile_is_a_value_that_95_of_100_do_not_exceed() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(of(&hundred).p95, Some(95.0));
        assert_eq!(of(&hundred[..20]).p95, Some(99.0));
        assert_eq!(of(&hundred[..19]).p95, Some(100.0));
        assert_eq!(of(&[7.0]).p95, Some(7.0));
        assert_eq!(of(&[]), pb::GpuMetricBucket::default());
    }

    #[test]
    fn a_mean_does_not_leave_the_range() {
        let values = of(&[87.654; 61]);
        assert_eq!((values.avg, values.samples), (Some(87.654), 61));
        assert_eq!(of(&[f64::MAX; 3]).avg, Some(f64::MAX));
    }

    #[test]
    fn tidying_up_early_changes_nothing() {
        let values: Vec<f64> = (0..4 * TIDY)
            .map(|at| f64::from(u32::try_from(at * 7_919 % 50_021).unwrap()))
            .collect();
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let sum: f64 = sorted.iter().sum();
        let all = of(&values);
        assert_eq!(all.samples, i64::try_from(values.len()).unwrap());
        assert_eq!(all.p95, Some(sorted[(values.len() * 95).div_ceil(100) - 1]));
        assert!((all.avg.unwrap() * 4.0 * 16_384.0 - sum).abs() < 1e-3);
    }
}
