//! What was delivered since the start, for whoever measures.

use prometheus::{IntCounterVec, Opts};

use super::attempt::{Attempted, Outcome};

/// Counters that only grow. Clones share them.
#[derive(Debug, Clone)]
pub struct Counts {
    /// By what came of them.
    pub attempts: IntCounterVec,
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
        Self { attempts }
    }
}

impl Counts {
    /// Counts an attempt.
    pub(super) fn count(&self, outcome: &Outcome) {
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
