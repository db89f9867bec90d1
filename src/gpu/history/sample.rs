//! Samples for aggregation, and their query.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr, QueryResult};

use crate::{db::dialect::statement, error::Result, pb::GpuMetric};

/// Number of metrics. `GpuMetric` numbers the metrics from 1.
pub(super) const METRICS: usize = 26;

/// Number of columns before those of the metrics.
const METRICS_OFFSET: usize = 4;

/// Values of one row of `gpu_stats`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    /// Time in microseconds since 1970.
    pub at_us: i64,
    pub throttle: Option<u64>,
    /// Epoch and reading of the energy counter, in mJ. `None` without an epoch, because readings of
    /// different epochs cannot be compared.
    pub energy: Option<(i64, i64)>,
    /// Values, by the number of the metric less 1.
    pub values: [Option<f64>; METRICS],
}

impl Sample {
    /// Time in milliseconds since 1970.
    pub(super) fn at(&self) -> i64 {
        self.at_us.div_euclid(1_000)
    }
}

/// All metrics, in the order of their numbers.
pub(super) fn metrics() -> impl Iterator<Item = GpuMetric> {
    (1..).map_while(|number| GpuMetric::try_from(number).ok())
}

/// Samples of a GPU from `from` up to `until`, ordered by time. Rows without any value are left
/// out.
pub(super) async fn read(
    db: &impl ConnectionTrait,
    gpu_uuid: &str,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Vec<Sample>> {
    static SELECT: LazyLock<String> = LazyLock::new(select);
    let values = [gpu_uuid.into(), from.into(), until.into()];
    let rows = db.query_all_raw(statement(db, &SELECT, values)).await?;
    let mut samples = Vec::with_capacity(rows.len());
    for row in &rows {
        samples.extend(sample(row)?);
    }
    Ok(samples)
}

/// Each metric is named after its column.
fn select() -> String {
    let columns = metrics().map(|metric| {
        let column = metric.as_str_name().trim_start_matches("GPU_METRIC_");
        format!("CAST({} AS DOUBLE PRECISION)", column.to_lowercase())
    });
    let columns = columns.collect::<Vec<_>>().join(", ");
    format!(
        "SELECT recorded_at, throttle_reasons, counter_epoch, energy_consumption, {columns} \
         FROM gpu_stats WHERE gpu_uuid = $1 AND recorded_at >= $2 AND recorded_at < $3 \
         ORDER BY recorded_at, id"
    )
}

fn sample(row: &QueryResult) -> Result<Option<Sample>, DbErr> {
    let recorded_at: DateTime<Utc> = row.try_get_by_index(0)?;
    let throttle: Option<i64> = row.try_get_by_index(1)?;
    let epoch: Option<i64> = row.try_get_by_index(2)?;
    let energy: Option<i64> = row.try_get_by_index(3)?;
    let mut values = [None; METRICS];
    for (index, value) in values.iter_mut().enumerate() {
        let number: Option<f64> = row.try_get_by_index(METRICS_OFFSET + index)?;
        *value = number.filter(|number| number.is_finite());
    }
    if throttle.is_none() && energy.is_none() && values.iter().all(Option::is_none) {
        return Ok(None);
    }
    let energy = epoch.zip(energy).filter(|(_, energy)| (0..).contains(energy));
    Ok(Some(Sample {
        at_us: recorded_at.timestamp_micros(),
        throttle: throttle.map(i64::cast_unsigned),
        energy,
        values,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_numbered_without_a_hole() {
        let numbers: Vec<_> = metrics().map(|metric| metric as usize).collect();
        assert_eq!(numbers, (1..=METRICS).collect::<Vec<_>>());
    }
}
