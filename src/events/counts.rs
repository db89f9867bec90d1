//! What was taken in since the start, for whoever measures.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts};

use super::batch::Answer;
use crate::pb::Severity;

/// How many ingests share a transaction.
const BUCKETS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

const SEVERITIES: [Severity; 4] = [
    Severity::Low,
    Severity::Medium,
    Severity::High,
    Severity::Critical,
];

/// Counters that only grow. Clones share them.
#[derive(Debug, Clone)]
pub struct Counts {
    pub events: IntCounter,
    pub detections: IntCounter,
    /// By severity.
    pub alerts: IntCounterVec,
    /// Ingests that were stored before, and answered again.
    pub replays: IntCounter,
    pub batches: Histogram,
}

impl Default for Counts {
    fn default() -> Self {
        let counter = |name, help| IntCounter::new(name, help).expect("a legal name");
        let alerts = Opts::new(
            "watchpost_ingest_alerts_total",
            "Alerts that were raised by them.",
        );
        let batches = HistogramOpts::new(
            "watchpost_ingest_batch_size",
            "How many ingests shared a transaction.",
        );
        let alerts = IntCounterVec::new(alerts, &["severity"]).expect("legal names");
        for severity in SEVERITIES {
            // So that the first one is seen as a rise from 0.
            alerts.with_label_values(&[label(severity)]);
        }
        Self {
            events: counter(
                "watchpost_ingest_events_total",
                "Events that were ingested and stored.",
            ),
            detections: counter(
                "watchpost_ingest_detections_total",
                "Detections that were stored with them.",
            ),
            alerts,
            replays: counter(
                "watchpost_ingest_replays_total",
                "Repeated ingests that were answered with what was stored before.",
            ),
            batches: Histogram::with_opts(batches.buckets(BUCKETS.into()))
                .expect("buckets in order"),
        }
    }
}

impl Counts {
    /// So many ingests shared a transaction.
    pub(super) fn batch(&self, ingests: usize) {
        let ingests = u32::try_from(ingests).unwrap_or(u32::MAX);
        self.batches.observe(f64::from(ingests));
    }

    /// An ingest of a committed batch is answered.
    pub(super) fn answered(&self, answer: &Answer) {
        let Ok(stored) = answer else { return };
        if stored.replayed {
            self.replays.inc();
            return;
        }
        self.events.inc();
        self.detections.inc_by(stored.detections.len() as u64);
        for alert in &stored.alerts {
            self.alerts
                .with_label_values(&[label(alert.severity())])
                .inc();
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
