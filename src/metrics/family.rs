//! Families of metrics: a name with a value for every set of labels.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use crate::escape::escape;

/// Labels of one value.
pub(super) type Labels = Vec<(&'static str, String)>;

/// Families in the order of the output.
#[derive(Debug, Default)]
pub(super) struct Families(Vec<MetricFamily>);

impl Families {
    /// Adds a family. A family without values is left out.
    pub(super) fn add(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        let metric = |(labels, value)| {
            let mut metric = Metric::from_label(pairs(labels));
            if kind == MetricType::COUNTER {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            } else {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            metric
        };
        self.add_metrics(name, help, kind, values.into_iter().map(metric).collect());
    }

    /// Adds a family of one value without labels.
    pub(super) fn add_value(&mut self, name: &str, help: &str, kind: MetricType, value: f64) {
        self.add(name, help, kind, [(Labels::new(), value)]);
    }

    /// Adds a family of existing metrics. A family without metrics is left out.
    pub(super) fn add_metrics(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.into());
        family.set_help(help.into());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }

    /// Adds the families of a counter or a histogram with a name of its own.
    pub(super) fn add_collector(&mut self, metric: &impl prometheus::core::Collector) {
        self.0.extend(metric.collect());
    }

    pub(super) fn into_inner(self) -> Vec<MetricFamily> {
        self.0
    }
}

/// Labels in the representation of the crate `prometheus`.
pub(super) fn pairs(labels: Labels) -> Vec<LabelPair> {
    let pair = |(name, value): (&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.into());
        // The text format escapes line breaks and quotes only.
        let lines: Vec<_> = value.split('\n').map(escape).collect();
        pair.set_value(lines.join("\n"));
        pair
    };
    labels.into_iter().map(pair).collect()
}

/// Count as a double. Rounded above 2^53.
#[expect(clippy::cast_precision_loss, reason = "all values of the format are doubles")]
pub(super) fn count(count: u64) -> f64 {
    count as f64
}
