//! The same sums, done the slow way: one bucket at a time, from all samples.

use super::*;

/// What one GPU's answer should be.
pub(super) fn aggregate(rows: &[Row], start: i64, end: i64, width: i64) -> pb::GpuAggregate {
    let mut rows = rows.to_vec();
    rows.sort_by_key(|row| row.at);
    // One sample before the range is looked at.
    let first = rows.partition_point(|row| row.at < start);
    let rows: Vec<_> = rows[first.saturating_sub(1)..].iter().filter(|row| row.at < end).collect();
    let interval = interval(&rows);
    let starts = (start / width..=(end - 1) / width).map(|bucket| bucket * width);
    let starts: Vec<_> = starts.collect();
    let bucket = |starts: &i64| {
        let (from, until) = ((*starts).max(start), (starts + width).min(end));
        bucket(*starts, from, until, &rows, interval)
    };
    let series = |metric: GpuMetric, value: fn(&Row) -> Option<f64>| pb::GpuMetricSeries {
        metric: metric.into(),
        buckets: starts
            .iter()
            .map(|from| {
                let inside = |row: &&&Row| (*from..from + width).contains(&row.at) && row.at >= start;
                let inside = rows.iter().filter(inside);
                values(inside.filter_map(|row| value(row)).collect())
            })
            .collect(),
    };
    #[allow(clippy::cast_precision_loss)]
    pb::GpuAggregate {
        sample_interval: interval.map(time::duration_from_millis),
        buckets: starts.iter().map(bucket).collect(),
        // In the order of the enum.
        series: vec![
            series(GpuMetric::MemoryUsed, |row| row.memory_used.map(|memory| memory as f64)),
            series(GpuMetric::Temperature, |row| row.temperature),
            series(GpuMetric::PowerUsage, |row| row.power_usage),
        ],
        ..Default::default()
    }
}

fn interval(rows: &[&Row]) -> Option<i64> {
    let distances = rows.windows(2).map(|pair| pair[1].at - pair[0].at);
    let mut distances: Vec<_> = distances.filter(|distance| *distance > 0).collect();
    distances.sort_unstable();
    (!distances.is_empty()).then(|| distances[(distances.len() - 1) / 2])
}

fn bucket(starts: i64, from: i64, until: i64, rows: &[&Row], interval: Option<i64>) -> pb::GpuBucket {
    let inside = |row: &Row| (from..until).contains(&row.at);
    let (mut covered, mut observed) = (0, 0);
    let mut throttled = BTreeMap::new();
    for (number, row) in rows.iter().enumerate() {
        let Some(interval) = interval else { break };
        let most = interval + interval / 2;
        let holds = match rows.get(number + 1) {
            Some(next) if (next.at - row.at) * 2 <= 3 * interval => next.at - row.at,
            Some(_) => interval,
            None => most,
        };
        let time = ((row.at + holds).min(until) - row.at.max(from)).max(0);
        covered += time;
        let Some(mask) = row.throttle else { continue };
        observed += time;
        let reasons = [
            (0x1, ThrottleReason::GpuIdle),
            (0x2, ThrottleReason::ApplicationsClocksSetting),
            (0x4, ThrottleReason::SwPowerCap),
            (0x8, ThrottleReason::HwSlowdown),
            (0x10, ThrottleReason::SyncBoost),
            (0x20, ThrottleReason::SwThermalSlowdown),
            (0x40, ThrottleReason::HwThermalSlowdown),
            (0x80, ThrottleReason::HwPowerBrakeSlowdown),
            (0x100, ThrottleReason::DisplayClockSetting),
            (i64::MAX & !0x1ff, ThrottleReason::Other),
            (i64::MIN, ThrottleReason::Unknown),
        ];
        for (bits, reason) in reasons {
            if mask & bits != 0 && time > 0 {
                let (sum, seen) = throttled.entry(reason).or_insert((0, 0));
                *sum += time;
                *seen |= mask & bits;
            }
        }
    }
    let readings: Vec<_> = rows.iter().filter(|row| row.energy.is_some()).collect();
    let grown = readings.windows(2).filter(|pair| inside(pair[1]));
    let grown = grown.filter_map(|pair| {
        let ((epoch, before), (same, after)) = (pair[0].energy?, pair[1].energy?);
        (epoch == same && before <= after).then_some(after - before)
    });
    let grown: Vec<_> = grown.collect();
    let known = interval.is_some() || rows.is_empty();
    let gap = known.then_some(until - from - covered);
    pb::GpuBucket {
        start: at(starts),
        samples: number(rows.iter().filter(|row| inside(row)).count()),
        gap: gap.map(time::duration_from_millis),
        missing_samples: gap.zip(interval).map(|(gap, interval)| (gap + interval / 2) / interval),
        throttle_observed: interval.map(|_| time::duration_from_millis(observed)),
        throttle: throttled
            .into_iter()
            .map(|(reason, (time, bits))| pb::ThrottleTime {
                reason: reason.into(),
                time: Some(time::duration_from_millis(time)),
                bits: i64::cast_unsigned(bits),
            })
            .collect(),
        energy: (!grown.is_empty()).then(|| grown.iter().sum()),
    }
}

#[allow(clippy::cast_precision_loss)]
fn values(values: Vec<f64>) -> pb::GpuMetricBucket {
    let Some(last) = values.last().copied() else {
        return pb::GpuMetricBucket::default();
    };
    let mut sorted = values;
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    pb::GpuMetricBucket {
        samples: number(count),
        avg: Some(sorted.iter().sum::<f64>() / count as f64),
        min: Some(sorted[0]),
        max: Some(sorted[count - 1]),
        p95: Some(sorted[(count * 95).div_ceil(100) - 1]),
        last: Some(last),
    }
}

/// Compares, with means as near as sums of doubles in another order are.
#[track_caller]
pub(super) fn same(told: &pb::GpuAggregate, expected: &pb::GpuAggregate, context: &str) {
    assert_eq!(told.sample_interval, expected.sample_interval, "{context}");
    assert_eq!(told.buckets, expected.buckets, "{context}");
    assert_eq!(told.series.len(), expected.series.len(), "{context}");
    for (told, expected) in told.series.iter().zip(&expected.series) {
        assert_eq!(told.metric, expected.metric, "{context}");
        assert_eq!(told.buckets.len(), expected.buckets.len(), "{context}");
        for (told, expected) in told.buckets.iter().zip(&expected.buckets) {
            let near = match (told.avg, expected.avg) {
                (Some(told), Some(expected)) => (told - expected).abs() <= expected.abs() * 1e-12,
                (told, expected) => told == expected,
            };
            assert!(near, "{context}: {told:?}, not {expected:?}");
            let told = pb::GpuMetricBucket { avg: expected.avg, ..*told };
            assert_eq!(told, *expected, "{context}");
        }
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap()
}
