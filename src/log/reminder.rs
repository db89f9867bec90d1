//! Rate limit for warnings about a lasting fault.

use std::time::{Duration, Instant};

/// Minimum time between two warnings.
const MIN_PAUSE: Duration = Duration::from_mins(1);

/// Decides if a warning is due: at the begin of a fault, and once a minute while the fault lasts.
#[derive(Debug, Default)]
pub(crate) struct Reminder {
    last: Option<Instant>,
}

impl Reminder {
    /// Records a fault. Returns true if a warning is due.
    pub(crate) fn is_due(&mut self) -> bool {
        let is_due = self.last.is_none_or(|last| last.elapsed() >= MIN_PAUSE);
        if is_due {
            self.last = Some(Instant::now());
        }
        is_due
    }

    /// Records the absence of a fault. Returns true if a fault has ended.
    pub(crate) fn ended(&mut self) -> bool {
        self.last.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_warned_of_at_first_and_its_end_is_told_once() {
        let mut reminder = Reminder::default();
        assert!(!reminder.ended());
        assert!(reminder.is_due());
        assert!(!reminder.is_due());
        assert!(reminder.ended());
        assert!(!reminder.ended());
        assert!(reminder.is_due());
    }

    #[test]
    fn a_fault_that_lasts_is_warned_of_again() {
        let mut reminder = Reminder { last: Instant::now().checked_sub(MIN_PAUSE) };
        assert!(reminder.is_due());
        assert!(!reminder.is_due());
    }
}
