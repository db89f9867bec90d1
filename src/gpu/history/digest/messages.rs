//! Messages of a digest, and their readers. The columns of `gpu_stats_minutes` hold these messages.

use prost::{Message, bytes::Bytes};

use super::exact;
use crate::{
    error::{Error, Result},
    gpu::history::{sample::METRICS, value_counts::ValueCounts},
    pb,
};

/// Samples of one minute without the distribution of their values.
#[derive(Clone, PartialEq, Message)]
pub(in crate::gpu::history) struct Summary {
    /// Times of the samples in milliseconds. The first is relative to the start of the minute, the
    /// second to the first, and each other is the change of the distance from the one before.
    #[prost(sint64, repeated, tag = "1")]
    pub(super) times: Vec<i64>,
    /// Runs of samples with the same throttle mask or without a mask.
    #[prost(message, repeated, tag = "2")]
    pub(in crate::gpu::history) throttle: Vec<ThrottleRun>,
    /// Runs of energy readings of one epoch that do not decrease.
    #[prost(message, repeated, tag = "3")]
    pub(in crate::gpu::history) energy: Vec<EnergyRun>,
    /// A message [`Aggregates`], still encoded, because requests with buckets of several minutes do
    /// not read it.
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) aggregates: Bytes,
}

/// Samples with the same throttle mask or without a mask.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(in crate::gpu::history) struct ThrottleRun {
    #[prost(uint64, tag = "1")]
    pub samples: u64,
    #[prost(uint64, optional, tag = "2")]
    pub mask: Option<u64>,
}

/// Energy readings of one epoch that do not decrease, in mJ.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(in crate::gpu::history) struct EnergyRun {
    #[prost(uint64, tag = "1")]
    pub readings: u64,
    #[prost(sint64, tag = "2")]
    pub epoch: i64,
    #[prost(int64, tag = "3")]
    pub first: i64,
    #[prost(int64, tag = "4")]
    pub last: i64,
}

/// Aggregates of the metrics that have values, as columns: each list has one element per metric,
/// except for `doubles`. Minima, maxima, percentiles and last values are times `scale`.
#[derive(Clone, PartialEq, Message)]
pub(in crate::gpu::history) struct Aggregates {
    /// Numbers of the metrics in `GpuMetric`.
    #[prost(uint32, repeated, tag = "1")]
    pub(super) numbers: Vec<u32>,
    #[prost(int64, repeated, tag = "2")]
    pub(super) samples: Vec<i64>,
    #[prost(double, repeated, tag = "3")]
    pub(super) avg: Vec<f64>,
    /// 1 or 1,000. 0 if the four values are in `doubles`.
    #[prost(uint32, repeated, tag = "4")]
    pub(super) scale: Vec<u32>,
    #[prost(sint64, repeated, tag = "5")]
    pub(super) min: Vec<i64>,
    /// Maximum less minimum. The same applies to the 95th percentile and the last value.
    #[prost(int64, repeated, tag = "6")]
    pub(super) max: Vec<i64>,
    #[prost(int64, repeated, tag = "7")]
    pub(super) p95: Vec<i64>,
    #[prost(int64, repeated, tag = "8")]
    pub(super) last: Vec<i64>,
    /// Minimum, maximum, 95th percentile and last value of each metric with a scale of 0.
    #[prost(double, repeated, tag = "9")]
    pub(super) doubles: Vec<f64>,
}

/// Values of the metrics that have values. The values of a metric are still encoded, because most
/// requests read few metrics.
#[derive(Clone, PartialEq, Message)]
pub(in crate::gpu::history) struct Distribution {
    /// Numbers of the metrics in `GpuMetric`.
    #[prost(uint32, repeated, tag = "1")]
    pub(super) numbers: Vec<u32>,
    /// A message [`Values`] for each of the metrics.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(super) values: Vec<Bytes>,
}

/// Distinct values in ascending order: multiples of `1 / scale`, or doubles.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Values {
    /// 1 or 1,000. 0 if the values are doubles.
    #[prost(uint32, tag = "1")]
    pub scale: u32,
    /// The first value times `scale`.
    #[prost(sint64, tag = "2")]
    pub first: i64,
    /// The difference of each other value times `scale` from the one before.
    #[prost(uint64, repeated, tag = "3")]
    pub differences: Vec<u64>,
    #[prost(double, repeated, tag = "4")]
    pub doubles: Vec<f64>,
    /// Number of times that each value was measured. Empty if each was measured once.
    #[prost(uint64, repeated, tag = "5")]
    pub counts: Vec<u64>,
    /// Index of the value that was measured last.
    #[prost(uint64, tag = "6")]
    pub last_index: u64,
}

impl Summary {
    pub(in crate::gpu::history) fn parse(bytes: Bytes) -> Result<Self> {
        let summary = Self::decode(bytes).map_err(damaged)?;
        let with_mask: u64 = summary.throttle.iter().map(|run| run.samples).sum();
        if with_mask != summary.times.len() as u64 {
            return Err(damaged("samples are missing"));
        }
        Ok(summary)
    }

    /// Times of the samples, in milliseconds. `start` is the start of the encoded minute.
    pub(in crate::gpu::history) fn times(&self, start: i64) -> impl Iterator<Item = i64> {
        let (mut time, mut step) = (start, 0);
        self.times.iter().enumerate().map(move |(index, number)| {
            if index == 0 {
                time += number;
            } else {
                step += number;
                time += step;
            }
            time
        })
    }
}

impl Aggregates {
    /// Replaces the columns by those of a summary. Reuses their memory.
    pub(in crate::gpu::history) fn read(&mut self, summary: &Summary) -> Result<()> {
        self.clear();
        self.merge(summary.aggregates.as_ref()).map_err(damaged)?;
        let lengths = [self.samples.len(), self.avg.len(), self.scale.len(), self.min.len()];
        let more_lengths = [self.max.len(), self.p95.len(), self.last.len()];
        let doubles = self.scale.iter().filter(|scale| **scale == 0).count() * 4;
        let is_complete = lengths.iter().chain(&more_lengths).all(|length| *length == self.numbers.len());
        if !is_complete || doubles != self.doubles.len() {
            return Err(damaged("aggregates are missing"));
        }
        Ok(())
    }

    /// Adds the aggregates of a metric.
    pub(super) fn push(&mut self, number: u32, bucket: &pb::GpuMetricBucket) {
        let values = [bucket.min, bucket.max, bucket.p95, bucket.last].map(Option::unwrap_or_default);
        let (scale, scaled) = exact(&values).unwrap_or_else(|| (0, vec![0; values.len()]));
        if scale == 0 {
            self.doubles.extend(values);
        }
        let [max, p95, last] = [1, 2, 3].map(|index| scaled[index] - scaled[0]);
        self.numbers.push(number);
        self.samples.push(bucket.samples);
        self.avg.push(bucket.avg.unwrap_or_default());
        self.scale.push(scale);
        self.min.push(scaled[0]);
        self.max.push(max);
        self.p95.push(p95);
        self.last.push(last);
    }

    /// Index of each metric, which is its number less 1, and its aggregates.
    #[expect(clippy::cast_precision_loss, reason = "only exact doubles are written as multiples")]
    pub(in crate::gpu::history) fn buckets(&self) -> impl Iterator<Item = (usize, pb::GpuMetricBucket)> {
        let mut doubles = self.doubles.chunks_exact(4);
        self.numbers.iter().enumerate().map(move |(row, number)| {
            let scale = f64::from(self.scale[row]);
            let scaled = |above: i64| self.min[row].wrapping_add(above) as f64 / scale;
            let [min, max, p95, last] = match self.scale[row] {
                0 => doubles.next().and_then(<[f64]>::first_chunk).copied().unwrap_or_default(),
                _ => [scaled(0), scaled(self.max[row]), scaled(self.p95[row]), scaled(self.last[row])],
            };
            let [avg, min, max, p95, last] = [self.avg[row], min, max, p95, last].map(Some);
            let bucket = pb::GpuMetricBucket { samples: self.samples[row], avg, min, max, p95, last };
            (index(*number), bucket)
        })
    }
}

impl Distribution {
    pub(in crate::gpu::history) fn parse(bytes: Bytes) -> Result<Self> {
        let distribution = Self::decode(bytes).map_err(damaged)?;
        if distribution.numbers.len() != distribution.values.len() {
            return Err(damaged("values are missing"));
        }
        Ok(distribution)
    }

    /// Adds the values to the counts of the metrics. The index of a metric is its number less 1.
    pub(in crate::gpu::history) fn add_to(&self, metrics: &mut [Option<ValueCounts>; METRICS]) -> Result<()> {
        for (number, values) in self.numbers.iter().zip(&self.values) {
            if let Some(Some(counts)) = metrics.get_mut(index(*number)) {
                let values = Values::decode(values.as_ref()).map_err(damaged)?;
                values.add_to(counts).ok_or_else(|| damaged("values are missing"))?;
            }
        }
        Ok(())
    }
}

impl Values {
    /// Adds the values. `None` if they contradict each other.
    #[expect(clippy::cast_precision_loss, reason = "only exact doubles are written as differences")]
    fn add_to(&self, value_counts: &mut ValueCounts) -> Option<()> {
        let run = value_counts.start_run();
        let start = run.len();
        let scale = f64::from(self.scale);
        if self.scale > 0 {
            let mut value = self.first;
            run.push((value as f64 / scale, 1));
            for difference in &self.differences {
                value = value.checked_add_unsigned(*difference)?;
                run.push((value as f64 / scale, 1));
            }
        }
        run.extend(self.doubles.iter().map(|value| (*value, 1)));
        let added = &mut run[start..];
        if !self.counts.is_empty() {
            if self.counts.len() != added.len() {
                return None;
            }
            for ((_, count), given) in added.iter_mut().zip(&self.counts) {
                *count = *given;
            }
        }
        let (last, _) = *added.get(usize::try_from(self.last_index).ok()?)?;
        value_counts.set_last(last);
        Some(())
    }
}

/// Index of a metric, which is its number less 1. Larger than any index for the number 0.
const fn index(number: u32) -> usize {
    (number as usize).wrapping_sub(1)
}

fn damaged(problem: impl std::fmt::Display) -> Error {
    Error::internal(format!("a roll-up is damaged: {problem}"))
}
