//! Round trips of digests, and errors of the decoder.

use super::*;
use crate::{error::Result, pb};

/// Sample without values.
fn sample(at: i64) -> Sample {
    Sample { at_us: at * 1_000, throttle: None, energy: None, values: [None; METRICS] }
}

/// Aggregates of all metrics, from their encoded values.
fn from_values(distribution: &[u8]) -> Result<[pb::GpuMetricBucket; METRICS]> {
    let mut metrics = [(); METRICS].map(|()| Some(ValueCounts::default()));
    Distribution::parse(distribution.to_vec().into())?.add_to(&mut metrics)?;
    Ok(metrics.map(|counts| counts.unwrap().summary()))
}

/// Aggregates of all metrics, from the encoded summary.
fn from_summary(summary: &[u8]) -> Result<[pb::GpuMetricBucket; METRICS]> {
    let mut aggregates = Aggregates::default();
    aggregates.read(&Summary::parse(summary.to_vec().into())?)?;
    let mut buckets = [pb::GpuMetricBucket::default(); METRICS];
    for (metric, bucket) in aggregates.buckets() {
        buckets[metric] = bucket;
    }
    Ok(buckets)
}

/// The columns of a roll-up.
fn encoded(start: i64, samples: &[Sample]) -> (Vec<u8>, Vec<u8>) {
    let Digest { summary, distribution } = encode(start, samples);
    (summary.encode_to_vec(), distribution.encode_to_vec())
}

#[test]
fn times_come_back_whatever_their_distances() {
    for times in [
        vec![],
        vec![60_000],
        vec![60_017, 60_017],
        vec![60_003, 61_003, 62_004, 63_000, 63_000, 119_999],
        vec![60_000, 119_998, 119_999],
    ] {
        let samples: Vec<_> = times.iter().copied().map(sample).collect();
        let (summary, _) = encoded(60_000, &samples);
        let summary = Summary::parse(summary.into()).unwrap();
        assert_eq!(summary.times(60_000).collect::<Vec<_>>(), times);
    }
}

#[test]
fn values_come_back_exactly() {
    for values in [
        vec![37.0],
        vec![3.0, 1.0, 2.0, 1.0],
        vec![0.0, -0.0, -5.0],
        vec![87.654, 87.655, 87.654, 350.001],
        vec![1.0 / 3.0, 0.1, f64::MAX, -1e300, 0.1],
        vec![MAX_EXACT_INTEGER, MAX_EXACT_INTEGER - 1.0, 1e16],
        vec![12.5, 1e15 + 0.5],
    ] {
        let samples: Vec<_> = values
            .iter()
            .map(|value| {
                let mut sample = sample(0);
                sample.values[0] = Some(*value);
                sample.values[1] = Some(1.0);
                sample.values[2] = Some(value / 3.0);
                sample.values[METRICS - 1] = Some(value / 7.0);
                sample
            })
            .collect();
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let (summary, distribution) = encoded(0, &samples);
        let all = from_values(&distribution).unwrap();
        assert_eq!(from_summary(&summary).unwrap(), all);
        assert_eq!(all.iter().filter(|bucket| bucket.samples > 0).count(), 4);
        let read = all[0];
        assert_eq!(read.samples, i64::try_from(values.len()).unwrap());
        assert_eq!(read.min, sorted.first().copied());
        assert_eq!((read.max, read.p95), (sorted.last().copied(), sorted.last().copied()));
        assert_eq!(read.last, values.last().copied());
    }
}

#[test]
fn masks_and_energy_come_in_runs() {
    let with = |throttle, energy| Sample { throttle, energy, ..sample(0) };
    let samples = [
        with(Some(4), Some((7, 10))),
        with(Some(4), Some((7, 10))),
        with(None, None),
        with(Some(u64::MAX), Some((7, 25))),
        with(Some(u64::MAX), Some((7, 20))),
        with(Some(0), Some((-8, 0))),
    ];
    let (summary, _) = encoded(0, &samples);
    let summary = Summary::parse(summary.into()).unwrap();
    let masks: Vec<_> = summary.throttle.iter().map(|run| (run.samples, run.mask)).collect();
    let runs: Vec<_> = summary.energy.iter().map(|run| (run.readings, run.epoch, run.first, run.last)).collect();
    let expected = [(2, Some(4)), (1, None), (2, Some(u64::MAX)), (1, Some(0))];
    assert_eq!(masks, expected);
    assert_eq!(runs, [(3, 7, 10, 25), (1, 7, 20, 20), (1, -8, 0, 0)]);
}

#[test]
fn a_damaged_digest_is_an_error() {
    let mut one = sample(60_500);
    one.values[0] = Some(0.1 + 0.2);
    one.throttle = Some(300);
    one.energy = Some((1, 1 << 40));
    let (summary, distribution) = encoded(60_000, &[one.clone(), one]);
    assert_eq!(from_summary(&summary).unwrap()[0].samples, 2);
    for length in 0..summary.len() {
        let samples = from_summary(&summary[..length]).map(|buckets| buckets[0].samples);
        assert_ne!(samples.ok(), Some(2), "{length} bytes of a summary");
    }
    for length in 0..distribution.len() {
        let samples = from_values(&distribution[..length]).map(|buckets| buckets[0].samples);
        assert_ne!(samples.ok(), Some(2), "{length} bytes of a distribution");
    }
}
