//! Series of metrics of one GPU, bucket by bucket.

use super::{
    digest::{Aggregates, Distribution, Summary},
    sample::{METRICS, metrics},
    value_counts::ValueCounts,
};
use crate::{error::Result, pb};

/// Series of the requested metrics, and the values of the current bucket.
#[derive(Debug)]
pub(super) struct Series {
    values: [Option<ValueCounts>; METRICS],
    done: Vec<pb::GpuMetricSeries>,
    /// Memory for the aggregates of a minute.
    aggregates: Aggregates,
    /// Index of the current bucket.
    bucket: usize,
    /// True if the current bucket has values.
    touched: bool,
}

impl Series {
    pub(super) fn new(requested: &[pb::GpuMetric], buckets: usize) -> Self {
        let mut values = [const { None }; METRICS];
        let mut done = Vec::new();
        for (place, metric) in values.iter_mut().zip(metrics()) {
            if requested.contains(&metric) {
                *place = Some(ValueCounts::default());
                done.push(pb::GpuMetricSeries { metric: metric.into(), buckets: Vec::with_capacity(buckets) });
            }
        }
        Self { values, done, aggregates: Aggregates::default(), bucket: 0, touched: false }
    }

    /// Adds values to a bucket. The index must not be lower than in the last call.
    pub(super) fn add(&mut self, bucket: usize, distribution: &Distribution) -> Result<()> {
        self.advance_to(bucket);
        self.touched = true;
        distribution.add_to(&mut self.values)
    }

    /// Takes the aggregates of a minute for a bucket without other samples.
    pub(super) fn add_summary(&mut self, bucket: usize, summary: &Summary) -> Result<()> {
        self.advance_to(bucket);
        let mut buckets = [pb::GpuMetricBucket::default(); METRICS];
        self.aggregates.read(summary)?;
        for (metric, metric_bucket) in self.aggregates.buckets() {
            if let Some(place) = buckets.get_mut(metric) {
                *place = metric_bucket;
            }
        }
        let requested_buckets = buckets
            .into_iter()
            .zip(&self.values)
            .filter_map(|(metric_bucket, values)| values.is_some().then_some(metric_bucket));
        for (series, metric_bucket) in self.done.iter_mut().zip(requested_buckets) {
            series.buckets.push(metric_bucket);
        }
        self.bucket = bucket + 1;
        Ok(())
    }

    /// Finishes all buckets before `bucket`.
    fn advance_to(&mut self, bucket: usize) {
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
                series.buckets.resize(bucket, pb::GpuMetricBucket::default());
            }
            self.bucket = bucket;
        }
    }

    pub(super) fn finish(mut self, buckets: usize) -> Vec<pb::GpuMetricSeries> {
        self.advance_to(buckets);
        self.done
    }
}
