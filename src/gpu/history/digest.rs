//! Digest: the compact encoding of the samples of a roll-up, as two protobuf messages.
//!
//! A [`Summary`] has the times, throttle masks, energy readings and aggregates of a minute, and the
//! distribution has the values, as [`Metrics`]. Only the order of the values is lost, so percentiles over many
//! minutes are exact. A request with buckets of a minute reads summaries only.

use prost::Message;

use super::{
    sample::{METRICS, Sample},
    value_counts::ValueCounts,
};
use crate::pb;

pub(super) use self::messages::{EnergyRun, Metrics, Summary};
use self::messages::{MetricSummary, ThrottleRun, Values};

mod messages;

/// Largest whole number that a double represents exactly, together with its neighbours.
const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_991.0;

/// Messages with the samples of one minute.
#[derive(Debug)]
pub(super) struct Digest {
    pub summary: Summary,
    pub distribution: Metrics,
}

/// Encodes samples, which must be ordered by time and not before `start`, in milliseconds.
pub(super) fn encode(start: i64, samples: &[Sample]) -> Digest {
    let (mut summaries, mut distribution) = (Metrics::default(), Metrics::default());
    let mut values = Vec::with_capacity(samples.len());
    let mut counts = ValueCounts::default();
    for (metric, number) in (0..METRICS).zip(1..) {
        values.clear();
        // Negative zero counts as zero.
        values.extend(samples.iter().filter_map(|sample| Some(sample.values[metric]? + 0.0)));
        if let Some(last) = values.last().copied() {
            values.sort_unstable_by(f64::total_cmp);
            #[expect(clippy::float_cmp, reason = "measured values are compared exactly")]
            let runs = values.chunk_by(|a, b| a == b);
            let run = counts.start_run();
            run.extend(runs.map(|run| (run[0], run.len() as u64)));
            distribution.push(number, &encode_values(run, last));
            counts.set_last(last);
            summaries.push(number, &metric_summary(&counts.summary()));
        }
    }
    let summary = Summary {
        times: times(start, samples),
        throttle: throttle(samples),
        energy: energy(samples),
        metrics: summaries.encode_to_vec().into(),
    };
    Digest { summary, distribution }
}

fn times(start: i64, samples: &[Sample]) -> Vec<i64> {
    let (mut last, mut step) = (start, 0);
    let times = samples.iter().enumerate().map(|(index, sample)| {
        let distance = sample.at() - last;
        last = sample.at();
        if index == 0 { distance } else { distance - std::mem::replace(&mut step, distance) }
    });
    times.collect()
}

fn throttle(samples: &[Sample]) -> Vec<ThrottleRun> {
    let runs = samples.chunk_by(|a, b| a.throttle == b.throttle);
    runs.map(|run| ThrottleRun { samples: run.len() as u64, mask: run[0].throttle }).collect()
}

fn energy(samples: &[Sample]) -> Vec<EnergyRun> {
    let readings: Vec<_> = samples.iter().filter_map(|sample| sample.energy).collect();
    let runs = readings.chunk_by(|a, b| a.0 == b.0 && a.1 <= b.1);
    let runs = runs.map(|run| {
        let (epoch, first) = run[0];
        EnergyRun { readings: run.len() as u64, epoch, first, last: run[run.len() - 1].1 }
    });
    runs.collect()
}

fn metric_summary(bucket: &pb::GpuMetricBucket) -> MetricSummary {
    let values = [bucket.min, bucket.max, bucket.p95, bucket.last].map(Option::unwrap_or_default);
    let avg = bucket.avg.filter(|_| bucket.min != bucket.max);
    let summary = MetricSummary { samples: bucket.samples, avg, ..MetricSummary::default() };
    match exact(&values) {
        Some((scale, scaled)) => {
            let min = scaled[0];
            let [max, p95, last] = [1, 2, 3].map(|index| scaled[index] - min);
            MetricSummary { scale, min, max, p95, last, ..summary }
        }
        None => MetricSummary { doubles: values.to_vec(), ..summary },
    }
}

/// Encodes distinct values, which must ascend, with the number of times that each was measured.
fn encode_values(counts: &[(f64, u64)], last: f64) -> Values {
    let distinct: Vec<f64> = counts.iter().map(|(value, _)| *value).collect();
    let last_index = distinct.partition_point(|value| *value < last) as u64;
    let is_distinct = counts.iter().all(|(_, count)| *count == 1);
    let counts = if is_distinct { Vec::new() } else { counts.iter().map(|(_, count)| *count).collect() };
    match exact(&distinct) {
        Some((scale, scaled)) => {
            let differences = scaled.windows(2).map(|pair| pair[1].abs_diff(pair[0])).collect();
            Values { scale, first: scaled[0], differences, doubles: Vec::new(), counts, last_index }
        }
        None => Values { doubles: distinct, counts, last_index, ..Values::default() },
    }
}

/// Scale (1 or 1,000) with which all values are whole numbers without loss, and these numbers.
fn exact(values: &[f64]) -> Option<(u32, Vec<i64>)> {
    [1_u32, 1_000].into_iter().find_map(|scale| Some((scale, scaled(values, scale.into())?)))
}

/// Values times `scale` as whole numbers. `None` if a value would lose precision.
#[expect(clippy::cast_possible_truncation, clippy::float_cmp, reason = "values that would change are rejected")]
fn scaled(values: &[f64], scale: f64) -> Option<Vec<i64>> {
    let scaled = |value: &f64| {
        let whole = (value * scale).round();
        let fits = whole.abs() <= MAX_EXACT_INTEGER && whole / scale == *value;
        fits.then_some(whole as i64)
    };
    values.iter().map(scaled).collect()
}

#[cfg(test)]
mod tests;
