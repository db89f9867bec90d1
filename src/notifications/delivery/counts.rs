//! Metrics of deliveries since the start of the process.

use prometheus::{IntCounterVec, IntGauge, Opts};

use super::outcome::{AttemptResult, Outcome};

/// Metrics of deliveries. Clones share the values.
#[derive(Debug, Clone)]
pub struct Counts {
    /// Attempts by outcome.
    pub attempts: IntCounterVec,
    /// Number of channels with undecryptable secrets.
    pub unreadable_channels: IntGauge,
    /// 0 if the key file is needed but unreadable, else 1.
    pub key_readable: IntGauge,
}

impl Default for Counts {
    fn default() -> Self {
        let options = Opts::new(
            "watchpost_delivery_attempts_total",
            "Attempts to deliver an alert by a channel, by what came of them.",
        );
        let attempts = IntCounterVec::new(options, &["outcome"]).expect("legal names");
        for outcome in ["delivered", "failed", "throttled", "refused", "gone"] {
            // The series exists from the start, so the first attempt is a rise from 0.
            attempts.with_label_values(&[outcome]);
        }
        let unreadable_channels = IntGauge::new(
            "watchpost_unreadable_channels",
            "Notification channels whose secrets this process cannot decrypt.",
        );
        let key_readable = IntGauge::new(
            "watchpost_secret_key_readable",
            "Whether the key file of secrets can be read: 0 if it is needed and cannot.",
        );
        let key_readable = key_readable.expect("a legal name");
        key_readable.set(1);
        Self { attempts, unreadable_channels: unreadable_channels.expect("a legal name"), key_readable }
    }
}

impl Counts {
    /// Counts an attempt by its outcome.
    pub(crate) fn count(&self, outcome: &Outcome) {
        let label = match &outcome.result {
            AttemptResult::Delivered => "delivered",
            AttemptResult::Failed(_) => "failed",
            AttemptResult::Throttled(..) => "throttled",
            AttemptResult::Refused(_) => "refused",
            AttemptResult::Gone(_) => "gone",
        };
        self.attempts.with_label_values(&[label]).inc();
    }
}
