//! Memory pressure of a GPU, as one of three levels.

use crate::pb::MemoryPressure::{self, Critical, Normal, Warning};

/// Memory use in percent at which a level begins, and below which the level ends. The gap keeps a
/// value near a threshold from causing many changes.
const WARNING: (i128, i128) = (85, 80);
const CRITICAL: (i128, i128) = (95, 90);

/// Level after the level `before`. `None` if the GPU has no memory.
pub(crate) fn level(before: Option<MemoryPressure>, used: i64, total: i64) -> Option<MemoryPressure> {
    if total <= 0 {
        return None;
    }
    let holds = |(enter, leave), at_least: &[MemoryPressure]| {
        let is_held = before.is_some_and(|before| at_least.contains(&before));
        let percent = if is_held { leave } else { enter };
        i128::from(used) * 100 >= i128::from(total) * percent
    };
    Some(if holds(CRITICAL, &[Critical]) {
        Critical
    } else if holds(WARNING, &[Warning, Critical]) {
        Warning
    } else {
        Normal
    })
}

/// Level as a word, for details of events.
pub(crate) fn label(level: Option<MemoryPressure>) -> &'static str {
    match level {
        Some(Normal) => "normal",
        Some(Warning) => "warning",
        Some(Critical) => "critical",
        Some(MemoryPressure::Unspecified) | None => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_reached_at_its_threshold_and_left_five_points_below() {
        for (before, used, after) in [
            (None, 849, Normal),
            (None, 850, Warning),
            (None, 950, Critical),
            (Some(Normal), 849, Normal),
            (Some(Normal), 850, Warning),
            (Some(Normal), 1000, Critical),
            (Some(Warning), 949, Warning),
            (Some(Warning), 950, Critical),
            (Some(Warning), 800, Warning),
            (Some(Warning), 799, Normal),
            (Some(Critical), 900, Critical),
            (Some(Critical), 899, Warning),
            (Some(Critical), 800, Warning),
            (Some(Critical), 799, Normal),
        ] {
            assert_eq!(level(before, used, 1000), Some(after), "{before:?} {used}");
        }
        assert_eq!(level(None, 0, 0), None);
        assert_eq!(level(None, i64::MAX, i64::MAX), Some(Critical));
    }
}
