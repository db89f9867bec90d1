//! Outcomes of delivery attempts.

use std::{fmt, time::Duration};

/// Outcome of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) result: AttemptResult,
    /// Status code of the answer: HTTP status or SMTP code. `None` without an answer.
    pub(crate) status_code: Option<i32>,
}

/// Result of an attempt, with the error of a failure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum AttemptResult {
    /// The receiver accepted the message.
    Delivered,
    /// The attempt failed. A later attempt may succeed.
    Failed(String),
    /// The receiver is overloaded, and may have asked for a delay of the whole channel.
    Throttled(String, Option<Duration>),
    /// The message can never be delivered.
    Refused(String),
    /// The receiver wants no further messages. The channel is disabled.
    Gone(String),
}

impl Outcome {
    pub(crate) fn new(result: AttemptResult, status_code: Option<i32>) -> Self {
        Self { result, status_code }
    }

    /// Outcome of an attempt that failed before an answer.
    pub(crate) fn failed(problem: impl fmt::Display) -> Self {
        Self::new(AttemptResult::Failed(problem.to_string()), None)
    }

    /// Error of the attempt. `None` for a delivered message.
    pub(crate) fn error(&self) -> Option<&str> {
        match &self.result {
            AttemptResult::Delivered => None,
            AttemptResult::Failed(error)
            | AttemptResult::Throttled(error, _)
            | AttemptResult::Refused(error)
            | AttemptResult::Gone(error) => Some(error),
        }
    }

    /// Outcome with its error rewritten by `rewrite`.
    pub(crate) fn map_error(mut self, rewrite: impl Fn(&str) -> String) -> Self {
        match &mut self.result {
            AttemptResult::Delivered => {}
            AttemptResult::Failed(error)
            | AttemptResult::Throttled(error, _)
            | AttemptResult::Refused(error)
            | AttemptResult::Gone(error) => *error = rewrite(error),
        }
        self
    }
}
