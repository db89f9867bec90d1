//! Samples in little room: what a roll-up holds.
//!
//! The form, version 1. Numbers are varints as in protobuf (7 bits a byte, the low ones first, the
//! high bit set in all bytes but the last); *signed* ones are zigzag-encoded first.
//!
//! ```text
//! summary      = version(1) samples section(times) section(throttle) section(energy) told*
//! distribution = version(1) metric*
//! section      = length-in-bytes byte*
//! times        = first [second-minus-first difference-of-differences(signed)*]
//! throttle     = (samples 0 | samples 1 mask)*
//! energy       = (readings epoch(signed) first last-minus-first)*
//! told         = number form samples least [greatest percentile last mean(double)]
//! metric       = number section(values)
//! values       = form distinct index-of-last values [count*]
//! ```
//!
//! - Times are whole milliseconds, the first since the start of the minute. Of two samples at one
//!   time, the one with the lower id comes first.
//! - `throttle` has runs of samples with the same mask, or without one.
//! - `energy` has runs of readings (mJ) of one epoch that do not fall.
//! - Metrics come in the order of their numbers in `GpuMetric`; those without a value are left out.
//!   `form` says how values are written: 0 as whole numbers, 1 as whole thousandths, both as the first
//!   one (signed) and what the others are more than it, 2 as doubles of 8 bytes, the low one first.
//! - `told` is what a bucket of this minute says. With 4 added to the form, all samples have one value,
//!   and nothing follows it.
//! - `values` are distinct, ascend, and are written as what they are more than the one before. With 4
//!   added to the form, each was measured once; else the counts follow.
//!
//! So nothing is lost but the order of the values, and percentiles over many minutes are exact. Who
//! asks for minutes reads summaries only.

use super::{
    sample::{METRICS, Sample},
    series::Distribution,
};
use crate::pb;

pub(super) use self::read::{EnergyRun, Summary, add_values};

mod read;

const VERSION: u8 = 1;

/// How values are written.
const WHOLE: u64 = 0;
const THOUSANDTHS: u64 = 1;
const DOUBLES: u64 = 2;
const ONCE: u64 = 4;
const CONSTANT: u64 = 4;

/// The largest whole number that a double and its neighbours hold.
const EXACT: f64 = 9_007_199_254_740_991.0;

/// The two parts of a digest.
#[derive(Debug)]
pub(super) struct Digest {
    pub summary: Vec<u8>,
    pub distribution: Vec<u8>,
}

/// Writes samples, which are in order and not before `start`, in milliseconds.
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
        // Negative zero is zero.
        values.extend(
            samples
                .iter()
                .filter_map(|sample| Some(sample.values[metric]? + 0.0)),
        );
        if let Some(last) = values.last().copied() {
            values.sort_unstable_by(f64::total_cmp);
            #[expect(clippy::float_cmp, reason = "what was measured is not rounded")]
            let runs = values.chunk_by(|a, b| a == b);
            let start = counts.more();
            start.extend(runs.map(|run| (run[0], run.len() as u64)));
            push(&mut distribution, metric as u64 + 1);
            push_section(&mut distribution, &write_values(start, last));
            counts.set_last(last);
            push(&mut summary, metric as u64 + 1);
            push_told(&mut summary, &counts.summary());
        }
    }
    Digest {
        summary,
        distribution,
    }
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

fn push_told(bytes: &mut Vec<u8>, told: &pb::GpuMetricBucket) {
    let values = [told.min, told.max, told.p95, told.last].map(Option::unwrap_or_default);
    let constant = told.min == told.max;
    let values = if constant { &values[..1] } else { &values[..] };
    let (form, whole) = form(values);
    push(bytes, form + if constant { CONSTANT } else { 0 });
    push(bytes, told.samples.unsigned_abs());
    if form == DOUBLES {
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    for (at, value) in whole.iter().enumerate() {
        if at == 0 {
            push_signed(bytes, *value);
        } else {
            push(bytes, value.abs_diff(whole[0]));
        }
    }
    if !constant {
        bytes.extend(told.avg.unwrap_or_default().to_le_bytes());
    }
}

fn write_values(counts: &[(f64, u64)], last: f64) -> Vec<u8> {
    let distinct: Vec<f64> = counts.iter().map(|(value, _)| *value).collect();
    let once = counts.iter().all(|(_, count)| *count == 1);
    let (form, whole) = form(&distinct);
    let mut bytes = Vec::with_capacity(distinct.len() * 4 + 8);
    push(&mut bytes, form + if once { ONCE } else { 0 });
    push(&mut bytes, distinct.len() as u64);
    let index = distinct.partition_point(|value| *value < last);
    push(&mut bytes, index as u64);
    if form == DOUBLES {
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
    if !once {
        for (_, count) in counts {
            push(&mut bytes, *count);
        }
    }
    bytes
}

/// How to write values without loss, and the whole numbers to write if they can be.
fn form(values: &[f64]) -> (u64, Vec<i64>) {
    if let Some(whole) = scaled(values, 1.0) {
        (WHOLE, whole)
    } else if let Some(whole) = scaled(values, 1_000.0) {
        (THOUSANDTHS, whole)
    } else {
        (DOUBLES, Vec::new())
    }
}

/// The values times `scale` as whole numbers, if that takes nothing from any.
#[expect(
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    reason = "what does not come back as it was is refused"
)]
fn scaled(values: &[f64], scale: f64) -> Option<Vec<i64>> {
    let scaled = |value: &f64| {
        let whole = (value * scale).round();
        let fits = whole.abs() <= EXACT && whole / scale == *value;
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
