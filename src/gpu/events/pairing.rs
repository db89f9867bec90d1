//! Pairing of XIDs: NVML and the kernel log both report most XIDs, and each XID counts once.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::entity::gpu_event::GpuEventSource;

/// Time between the two reports of one XID, at most.
const PAIRING_WINDOW: Duration = Duration::from_secs(2);

/// Upper bound of unpaired reports in memory.
const MAX_REPORTS: usize = 1_024;

/// XIDs that one of the two sources has reported.
#[derive(Debug, Default)]
pub(super) struct XidPairing(VecDeque<XidReport>);

#[derive(Debug)]
struct XidReport {
    subject: Option<String>,
    code: Option<i64>,
    source: GpuEventSource,
    reported_at: Instant,
}

impl XidPairing {
    /// Returns true if the other source has reported the same XID. The pair is then forgotten, so
    /// that repeated XIDs are paired one by one.
    pub(super) fn pair(
        &mut self,
        subject: Option<String>,
        code: Option<i64>,
        source: GpuEventSource,
        now: Instant,
    ) -> bool {
        let is_expired = |report: &XidReport| now.saturating_duration_since(report.reported_at) > PAIRING_WINDOW;
        while self.0.front().is_some_and(is_expired) {
            self.0.pop_front();
        }
        let is_counterpart =
            |report: &XidReport| report.source != source && report.subject == subject && report.code == code;
        if let Some(index) = self.0.iter().position(is_counterpart) {
            self.0.remove(index);
            return true;
        }
        if self.0.len() == MAX_REPORTS {
            self.0.pop_front();
        }
        self.0.push_back(XidReport { subject, code, source, reported_at: now });
        false
    }
}

#[cfg(test)]
mod tests {
    use super::{
        GpuEventSource::{KernelLog, NvmlEvent},
        *,
    };

    #[test]
    fn what_both_tell_is_paired_one_by_one() {
        let (mut pairing, start) = (XidPairing::default(), Instant::now());
        let mut pair = |subject: &str, code, source, millis| {
            let at = start + Duration::from_millis(millis);
            pairing.pair(Some(subject.into()), Some(code), source, at)
        };
        // Two reports of one source are two events, and each has a counterpart.
        assert!(!pair("a", 79, NvmlEvent, 0));
        assert!(!pair("a", 79, NvmlEvent, 10));
        assert!(pair("a", 79, KernelLog, 20));
        assert!(!pair("b", 79, KernelLog, 30));
        assert!(!pair("a", 31, KernelLog, 40));
        assert!(pair("a", 79, KernelLog, 2_000));
        assert!(!pair("a", 79, KernelLog, 2_000));
        // The reports are too far apart to be a pair.
        assert!(!pair("a", 79, NvmlEvent, 4_001));
    }
}
