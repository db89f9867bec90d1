//! What was delivered since the start, for whoever measures.

use prometheus::{IntCounterVec, IntGauge, Opts};

use super::attempt::{Attempted, Outcome};

/// Counters that only grow. Clones share them.
#[derive(Debug, Clone)]
pub struct Counts {
    /// By what came of them.
    pub attempts: IntCounterVec,
    /// The channels whose secrets cannot be decrypted.
    pub unreadable_channels: IntGauge,
    /// 0 if the key file is needed and cannot be read, else 1.
    pub key_readable: IntGauge,
}

impl Default for Counts {
    fn default() -> Self {
        let attempts = Opts::new(
            "watchpost_delivery_attempts_total",
            "Attempts to deliver an alert by a channel, by what came of them.",
        );
        let attempts = IntCounterVec::new(attempts, &["outcome"]).expect("legal names");
        for outcome in ["delivered", "failed", "throttled", "refused", "gone"] {
            // So that the first one is seen as a rise from 0.
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
        Self {
            attempts,
            unreadable_channels: unreadable_channels.expect("a legal name"),
            key_readable,
        }
    }
}

impl Counts {
    /// Counts an attempt.
    pub(crate) fn count(&self, outcome: &Outcome) {
        let label = match &outcome.result {
            Attempted::Delivered => "delivered",
            Attempted::Failed(_) => "failed",
            Attempted::Throttled(..) => "throttled",
            Attempted::Refused(_) => "refused",
            Attempted::Gone(_) => "gone",
        };
        self.attempts.with_label_values(&[label]).inc();
    }
}
