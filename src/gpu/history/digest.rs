//! Digest: the compact encoding of the samples of a roll-up, as two protobuf messages.
//!
//! A [`Summary`] has the times, throttle masks, energy readings and [`Aggregates`] of a minute, and a
//! [`Distribution`] has the values. Only the order of the values is lost, so percentiles over many
//! minutes are exact. A request with buckets of a minute reads summaries only.

use prost::Message;

use super::{
    sample::{METRICS, Sample},
    value_counts::ValueCounts,
};

pub(super) use self::messages::{Aggregates, Distribution, EnergyRun, Summary};
use self::messages::{ThrottleRun, Values};

mod messages;

/// Largest whole number that a double represents exactly, together with its neighbours.
const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_991.0;

/// Messages with the samples of one minute.
#[derive(Debug)]
pub(super) struct Digest {
    pub summary: Summary,
    pub distribution: Distribution,
}

/// Encodes samples, which must be ordered by time and not before `start`, in milliseconds.
pub(super) fn encode(start: i64, samples: &[Sample]) -> Digest {
    let (mut aggregates, mut distribution) = (Aggregates::default(), Distribution::default());
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
            distribution.numbers.push(number);
            distribution.values.push(encode_values(run, last).encode_to_vec().into());
            counts.set_last(last);
            aggregates.push(number, &counts.summary());
        }
    }
    let summary = Summary {
        times: times(start, samples),
        throttle: throttle(samples),
        energy: energy(samples),
        aggregates: aggregates.encode_to_vec().into(),
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
