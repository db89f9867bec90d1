//! Messages of a digest, and their readers. The columns of `gpu_stats_minutes` hold these messages.

use prost::{Message, bytes::Bytes};

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
    /// A message [`Metrics`] of messages [`MetricSummary`], still encoded, because requests with
    /// buckets of several minutes do not read it.
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) metrics: Bytes,
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

/// A message for each metric that has values, still encoded, because most requests read few
/// metrics.
#[derive(Clone, PartialEq, Message)]
pub(in crate::gpu::history) struct Metrics {
    /// Numbers of the metrics in `GpuMetric`.
    #[prost(uint32, repeated, tag = "1")]
    pub(super) numbers: Vec<u32>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(super) messages: Vec<Bytes>,
}

/// Aggregates of one metric: multiples of `1 / scale`, or doubles.
#[derive(Clone, PartialEq, Message)]
pub(super) struct MetricSummary {
    #[prost(int64, tag = "1")]
    pub samples: i64,
    /// 1 or 1,000. 0 if the values are doubles.
    #[prost(uint32, tag = "2")]
    pub scale: u32,
    /// Minimum, times `scale`.
    #[prost(sint64, tag = "3")]
    pub min: i64,
    /// Maximum minus minimum, times `scale`. The same applies to the 95th percentile and the last
    /// value.
    #[prost(int64, tag = "4")]
    pub max: i64,
    #[prost(int64, tag = "5")]
    pub p95: i64,
    #[prost(int64, tag = "6")]
    pub last: i64,
    /// Average. Absent if all values are equal.
    #[prost(double, optional, tag = "7")]
    pub avg: Option<f64>,
    /// Minimum, maximum, 95th percentile and last value as doubles. Empty with a scale.
    #[prost(double, repeated, tag = "8")]
    pub doubles: Vec<f64>,
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

    /// Aggregates of the metrics that have values. Metrics are named by their index, which is the
    /// number less 1.
    pub(in crate::gpu::history) fn metric_buckets(
        &self,
        is_requested: impl Fn(usize) -> bool,
    ) -> Result<Vec<(usize, pb::GpuMetricBucket)>> {
        let mut buckets = Vec::new();
        Metrics::parse(self.metrics.clone())?.read(|metric, summary| {
            if is_requested(metric) {
                let summary = MetricSummary::decode(summary).map_err(damaged)?;
                let bucket = summary.bucket().ok_or_else(|| damaged("aggregates are missing"))?;
                buckets.push((metric, bucket));
            }
            Ok(())
        })?;
        Ok(buckets)
    }
}

impl Metrics {
    pub(in crate::gpu::history) fn parse(bytes: Bytes) -> Result<Self> {
        let metrics = Self::decode(bytes).map_err(damaged)?;
        if metrics.numbers.len() != metrics.messages.len() {
            return Err(damaged("metrics are missing"));
        }
        Ok(metrics)
    }

    pub(super) fn push(&mut self, number: u32, message: &impl Message) {
        self.numbers.push(number);
        self.messages.push(message.encode_to_vec().into());
    }

    /// Calls `each` with the index of every metric, which is the number less 1, and its message.
    fn read(&self, mut each: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        for (number, message) in self.numbers.iter().zip(&self.messages) {
            let index = number.checked_sub(1).ok_or_else(|| damaged("a metric has no number"))?;
            each(index as usize, message)?;
        }
        Ok(())
    }

    /// Adds the values of messages [`Values`] to the counts of the metrics.
    pub(in crate::gpu::history) fn add_to(&self, metrics: &mut [Option<ValueCounts>; METRICS]) -> Result<()> {
        self.read(|metric, values| {
            if let Some(Some(counts)) = metrics.get_mut(metric) {
                let values = Values::decode(values).map_err(damaged)?;
                values.add_to(counts).ok_or_else(|| damaged("values are missing"))?;
            }
            Ok(())
        })
    }
}

impl MetricSummary {
    #[expect(clippy::cast_precision_loss, reason = "only exact doubles are written as multiples")]
    fn bucket(&self) -> Option<pb::GpuMetricBucket> {
        let [min, max, p95, last] = if self.scale > 0 {
            let scale = f64::from(self.scale);
            let value = |above: i64| Some(self.min.checked_add(above)? as f64 / scale);
            [value(0)?, value(self.max)?, value(self.p95)?, value(self.last)?]
        } else {
            *self.doubles.first_chunk()?
        };
        let [avg, min, max, p95, last] = [self.avg.unwrap_or(min), min, max, p95, last].map(Some);
        Some(pb::GpuMetricBucket { samples: self.samples, avg, min, max, p95, last })
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

fn damaged(problem: impl std::fmt::Display) -> Error {
    Error::internal(format!("a roll-up is damaged: {problem}"))
}
