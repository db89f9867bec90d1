//! Values of one metric, and how often each was measured.

use crate::pb;

/// Number of values at which the counts are compacted for the first time.
const COMPACTION_THRESHOLD: usize = 16_384;

/// Values of one metric in one bucket, and how often each was measured.
#[derive(Debug, Default)]
pub(super) struct ValueCounts {
    counts: Vec<(f64, u64)>,
    last: f64,
    /// Upper bound of the ascending runs in `counts`.
    runs: usize,
    /// Length of `counts` at which they are compacted next.
    compact_at: usize,
}

impl ValueCounts {
    /// List to which the caller appends distinct values in ascending order.
    pub(super) fn start_run(&mut self) -> &mut Vec<(f64, u64)> {
        if self.counts.len() >= self.compact_at.max(COMPACTION_THRESHOLD) {
            self.compact();
            self.compact_at = self.counts.len() * 2;
        }
        self.runs += 1;
        &mut self.counts
    }

    pub(super) fn set_last(&mut self, value: f64) {
        self.last = value;
    }

    /// Sorts the values and merges equal ones.
    fn compact(&mut self) {
        if self.runs < 2 {
            return;
        }
        self.counts.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        #[expect(clippy::float_cmp, reason = "measured values are compared exactly")]
        self.counts.dedup_by(|next, before| {
            let same = next.0 == before.0;
            if same {
                before.1 += next.1;
            }
            same
        });
        self.runs = 1;
    }

    /// Returns the aggregates, and clears the counts.
    #[expect(clippy::cast_precision_loss, reason = "a mean is rounded anyway")]
    pub(super) fn summary(&mut self) -> pb::GpuMetricBucket {
        self.compact();
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
        self.runs = 0;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn summarize(values: &[f64]) -> pb::GpuMetricBucket {
        let mut counts = ValueCounts::default();
        for value in values {
            counts.start_run().push((*value, 1));
            counts.set_last(*value);
        }
        counts.summary()
    }

    #[test]
    fn the_percentile_is_a_value_that_95_of_100_do_not_exceed() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(summarize(&hundred).p95, Some(95.0));
        assert_eq!(summarize(&hundred[..20]).p95, Some(99.0));
        assert_eq!(summarize(&hundred[..19]).p95, Some(100.0));
        assert_eq!(summarize(&[7.0]).p95, Some(7.0));
        assert_eq!(summarize(&[]), pb::GpuMetricBucket::default());
    }

    #[test]
    fn a_mean_does_not_leave_the_range() {
        let values = summarize(&[87.654; 61]);
        assert_eq!((values.avg, values.samples), (Some(87.654), 61));
        assert_eq!(summarize(&[f64::MAX; 3]).avg, Some(f64::MAX));
    }

    #[test]
    fn tidying_up_early_changes_nothing() {
        let values: Vec<f64> =
            (0..4 * COMPACTION_THRESHOLD).map(|at| f64::from(u32::try_from(at * 7_919 % 50_021).unwrap())).collect();
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let sum: f64 = sorted.iter().sum();
        let all = summarize(&values);
        assert_eq!(all.samples, i64::try_from(values.len()).unwrap());
        assert_eq!(all.p95, Some(sorted[(values.len() * 95).div_ceil(100) - 1]));
        assert!((all.avg.unwrap() * 4.0 * 16_384.0 - sum).abs() < 1e-3);
    }
}
