//! Tells whether an XID was told of before: NVML and the kernel log both tell of most.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::entity::gpu_event::GpuEventSource;

/// How much later than the first the second of them may come.
const WITHIN: Duration = Duration::from_secs(2);

/// How many reports are remembered.
const MOST: usize = 1_024;

/// What was told of, by one of the two only.
#[derive(Debug, Default)]
pub(super) struct Twins(VecDeque<Report>);

#[derive(Debug)]
struct Report {
    whom: Option<String>,
    code: Option<i64>,
    source: GpuEventSource,
    at: Instant,
}

impl Twins {
    /// Whether another source than this one has told of the same, which is then forgotten, so that
    /// what comes several times is paired one by one.
    pub(super) fn pair(
        &mut self,
        whom: Option<String>,
        code: Option<i64>,
        source: GpuEventSource,
        at: Instant,
    ) -> bool {
        let late = |report: &Report| at.saturating_duration_since(report.at) > WITHIN;
        while self.0.front().is_some_and(late) {
            self.0.pop_front();
        }
        let twin =
            |report: &Report| report.source != source && report.whom == whom && report.code == code;
        if let Some(twin) = self.0.iter().position(twin) {
            self.0.remove(twin);
            return true;
        }
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(Report {
            whom,
            code,
            source,
            at,
        });
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
        let (mut twins, start) = (Twins::default(), Instant::now());
        let mut pair = |whom: &str, code, source, millis| {
            let at = start + Duration::from_millis(millis);
            twins.pair(Some(whom.into()), Some(code), source, at)
        };
        // Two of one source are two events; each has a twin.
        assert!(!pair("a", 79, NvmlEvent, 0));
        assert!(!pair("a", 79, NvmlEvent, 10));
        assert!(pair("a", 79, KernelLog, 20));
        assert!(!pair("b", 79, KernelLog, 30));
        assert!(!pair("a", 31, KernelLog, 40));
        assert!(pair("a", 79, KernelLog, 2_000));
        assert!(!pair("a", 79, KernelLog, 2_000));
        // Too late to be the same.
        assert!(!pair("a", 79, NvmlEvent, 4_001));
    }
}
