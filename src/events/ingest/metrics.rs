//! Prometheus metrics of ingests.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts};

use super::stages::IngestResult;
use crate::pb::Severity;

/// Histogram buckets for the number of ingests per transaction.
const BATCH_SIZE_BUCKETS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

const SEVERITIES: [Severity; 4] = [Severity::Low, Severity::Medium, Severity::High, Severity::Critical];

/// Metrics of ingests since the start of the process. Clones share the metrics.
#[derive(Debug, Clone)]
pub struct IngestMetrics {
    pub events: IntCounter,
    pub detections: IntCounter,
    /// Raised alerts by severity.
    pub alerts: IntCounterVec,
    /// Repeated ingests that were answered with the stored response.
    pub replays: IntCounter,
    pub batches: Histogram,
}

impl Default for IngestMetrics {
    fn default() -> Self {
        let counter = |name, help| IntCounter::new(name, help).expect("a legal name");
        let alerts = Opts::new("watchpost_ingest_alerts_total", "Alerts that were raised by them.");
        let batches = HistogramOpts::new("watchpost_ingest_batch_size", "How many ingests shared a transaction.");
        let alerts = IntCounterVec::new(alerts, &["severity"]).expect("legal names");
        for severity in SEVERITIES {
            // A counter must exist at 0 for the first increase to be visible.
            alerts.with_label_values(&[label(severity)]);
        }
        Self {
            events: counter("watchpost_ingest_events_total", "Events that were ingested and stored."),
            detections: counter("watchpost_ingest_detections_total", "Detections that were stored with them."),
            alerts,
            replays: counter(
                "watchpost_ingest_replays_total",
                "Repeated ingests that were answered with what was stored before.",
            ),
            batches: Histogram::with_opts(batches.buckets(BATCH_SIZE_BUCKETS.into())).expect("buckets in order"),
        }
    }
}

impl IngestMetrics {
    /// Records the results of a committed batch of ingests.
    pub(crate) fn record_batch(&self, results: &[IngestResult]) {
        let ingests = u32::try_from(results.len()).unwrap_or(u32::MAX);
        self.batches.observe(f64::from(ingests));
        for result in results {
            self.record(result);
        }
    }

    fn record(&self, result: &IngestResult) {
        let stored = match result {
            IngestResult::Answered(answer) => {
                if answer.is_ok() {
                    self.replays.inc();
                }
                return;
            }
            IngestResult::Stored(stored) => stored,
        };
        self.events.inc();
        self.detections.inc_by(stored.detections() as u64);
        for alert in stored.alerts() {
            self.alerts.with_label_values(&[label(alert.severity())]).inc();
        }
    }
}

fn label(severity: Severity) -> &'static str {
    match severity {
        Severity::Unspecified => "unspecified",
        Severity::Low => "low",
        Severity::Medium => "medium",
        Severity::High => "high",
        Severity::Critical => "critical",
    }
}
