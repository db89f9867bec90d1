//! Digest: the compact encoding of the samples of a roll-up.
//!
//! Format, version 1. Numbers are varints as in protobuf: 7 bits per byte, the low bits first, the
//! high bit set in all bytes but the last. *Signed* numbers are zigzag-encoded first.
//!
//! ```text
//! summary      = version(1) samples section(times) section(throttle) section(energy) bucket*
//! distribution = version(1) metric*
//! section      = length-in-bytes byte*
//! times        = first [second-minus-first difference-of-differences(signed)*]
//! throttle     = (samples 0 | samples 1 mask)*
//! energy       = (readings epoch(signed) first last-minus-first)*
//! bucket       = number format samples min [max p95 last mean(double)]
//! metric       = number section(values)
//! values       = format distinct index-of-last values [count*]
//! ```
//!
//! - Times are whole milliseconds. The first time is relative to the start of the minute. Samples at
//!   the same time are ordered by id.
//! - `throttle` is a list of runs of samples with the same mask or without a mask.
//! - `energy` is a list of runs of readings (mJ) of one epoch that do not decrease.
//! - Metrics are ordered by their numbers in `GpuMetric`. Metrics without a value are left out.
//!   `format` is the encoding of values: 0 for whole numbers, 1 for whole thousandths, 2 for
//!   little-endian doubles. In formats 0 and 1 the first value is signed, and the others are
//!   differences from the first.
//! - `bucket` holds the aggregates of the minute. A format with 4 added means that all samples have
//!   one value, and nothing follows the value.
//! - `values` are distinct and ascend. In formats 0 and 1 the first value is signed, and each other
//!   value is the difference from the one before. A format with 4 added means that each value was
//!   measured once. Otherwise the counts follow.
//!
//! Only the order of the values is lost, so percentiles over many minutes are exact. A request with
//! buckets of a minute reads summaries only.

use super::{
    distribution::Distribution,
    sample::{METRICS, Sample},
};
use crate::pb;

pub(super) use self::decode::{EnergyRun, Summary, add_values};

mod decode;

const VERSION: u8 = 1;

/// Formats of values, and the number added for distinct or constant values.
const WHOLE: u64 = 0;
const THOUSANDTHS: u64 = 1;
const DOUBLES: u64 = 2;
const ONCE: u64 = 4;
const CONSTANT: u64 = 4;

/// Largest whole number that a double represents exactly, together with its neighbours.
const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_991.0;

/// Encoded samples of one minute.
#[derive(Debug)]
pub(super) struct Digest {
    pub summary: Vec<u8>,
    pub distribution: Vec<u8>,
}

/// Encodes samples, which must be ordered by time and not before `start`, in milliseconds.
pub(super) fn encode(start: i64, samples: &[Sample]) -> Digest {
    let (mut summary, mut distribution) = (vec![VERSION], vec![VERSION]);
    push(&mut summary, samples.len() as u64);
    push_section(&mut summary, &times(start, samples));
    push_section(&mut summary, &throttle(samples));
    push_section(&mut summary, &energy(samples));
    let mut values = Vec::with_capacity(samples.len());
    let mut counts = Distribution::default();
    for metric in 0..METRICS {
        values.clear();
        // Negative zero counts as zero.
        values.extend(samples.iter().filter_map(|sample| Some(sample.values[metric]? + 0.0)));
        if let Some(last) = values.last().copied() {
            values.sort_unstable_by(f64::total_cmp);
            #[expect(clippy::float_cmp, reason = "measured values are compared exactly")]
            let runs = values.chunk_by(|a, b| a == b);
            let run = counts.start_run();
            run.extend(runs.map(|run| (run[0], run.len() as u64)));
            push(&mut distribution, metric as u64 + 1);
            push_section(&mut distribution, &encode_values(run, last));
            counts.set_last(last);
            push(&mut summary, metric as u64 + 1);
            push_metric_bucket(&mut summary, &counts.summary());
        }
    }
    Digest { summary, distribution }
}

fn times(start: i64, samples: &[Sample]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(samples.len() + 4);
    let (mut last, mut step) = (start, None);
    for sample in samples {
        let difference = sample.at() - last;
        match step {
            None if bytes.is_empty() => push(&mut bytes, difference.unsigned_abs()),
            None => {
                push(&mut bytes, difference.unsigned_abs());
                step = Some(difference);
            }
            Some(before) => {
                push_signed(&mut bytes, difference - before);
                step = Some(difference);
            }
        }
        last = sample.at();
    }
    bytes
}

fn throttle(samples: &[Sample]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for run in samples.chunk_by(|a, b| a.throttle == b.throttle) {
        push(&mut bytes, run.len() as u64);
        push(&mut bytes, u64::from(run[0].throttle.is_some()));
        if let Some(mask) = run[0].throttle {
            push(&mut bytes, mask);
        }
    }
    bytes
}

fn energy(samples: &[Sample]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let readings: Vec<_> = samples.iter().filter_map(|sample| sample.energy).collect();
    for run in readings.chunk_by(|a, b| a.0 == b.0 && a.1 <= b.1) {
        let (epoch, first) = run[0];
        let grown = run[run.len() - 1].1 - first;
        push(&mut bytes, run.len() as u64);
        push_signed(&mut bytes, epoch);
        push(&mut bytes, first.unsigned_abs());
        push(&mut bytes, grown.unsigned_abs());
    }
    bytes
}

fn push_metric_bucket(bytes: &mut Vec<u8>, bucket: &pb::GpuMetricBucket) {
    let all_values = [bucket.min, bucket.max, bucket.p95, bucket.last].map(Option::unwrap_or_default);
    let is_constant = bucket.min == bucket.max;
    let values = if is_constant { &all_values[..1] } else { &all_values[..] };
    let (format, whole) = select_format(values);
    push(bytes, format + if is_constant { CONSTANT } else { 0 });
    push(bytes, bucket.samples.unsigned_abs());
    if format == DOUBLES {
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    for (index, value) in whole.iter().enumerate() {
        if index == 0 {
            push_signed(bytes, *value);
        } else {
            push(bytes, value.abs_diff(whole[0]));
        }
    }
    if !is_constant {
        bytes.extend(bucket.avg.unwrap_or_default().to_le_bytes());
    }
}

fn encode_values(counts: &[(f64, u64)], last: f64) -> Vec<u8> {
    let distinct: Vec<f64> = counts.iter().map(|(value, _)| *value).collect();
    let is_distinct = counts.iter().all(|(_, count)| *count == 1);
    let (format, whole) = select_format(&distinct);
    let mut bytes = Vec::with_capacity(distinct.len() * 4 + 8);
    push(&mut bytes, format + if is_distinct { ONCE } else { 0 });
    push(&mut bytes, distinct.len() as u64);
    let index = distinct.partition_point(|value| *value < last);
    push(&mut bytes, index as u64);
    if format == DOUBLES {
        bytes.extend(distinct.iter().flat_map(|value| value.to_le_bytes()));
    }
    let mut before = None;
    for value in whole {
        match before {
            None => push_signed(&mut bytes, value),
            Some(before) => push(&mut bytes, value.abs_diff(before)),
        }
        before = Some(value);
    }
    if !is_distinct {
        for (_, count) in counts {
            push(&mut bytes, *count);
        }
    }
    bytes
}

/// Most compact lossless format of the values, and the whole numbers to write in formats 0 and 1.
fn select_format(values: &[f64]) -> (u64, Vec<i64>) {
    if let Some(whole) = scaled(values, 1.0) {
        (WHOLE, whole)
    } else if let Some(whole) = scaled(values, 1_000.0) {
        (THOUSANDTHS, whole)
    } else {
        (DOUBLES, Vec::new())
    }
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

fn push(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

fn push_signed(bytes: &mut Vec<u8>, number: i64) {
    push(bytes, ((number << 1) ^ (number >> 63)).cast_unsigned());
}

fn push_section(bytes: &mut Vec<u8>, section: &[u8]) {
    push(bytes, section.len() as u64);
    bytes.extend_from_slice(section);
}

#[cfg(test)]
mod tests;
