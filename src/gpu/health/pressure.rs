//! How full the memory of a GPU is, as one of three levels.

use crate::pb::MemoryPressure::{self, Critical, Normal, Warning};

/// At how many percent a level is reached, and below how many it is left. In between a GPU stays
/// where it is, so that a value that swings about a threshold is one change and not many.
const WARNING: (i128, i128) = (85, 80);
const CRITICAL: (i128, i128) = (95, 90);

/// The level of a GPU that had another one `before`, if any. `None` if it has no memory.
pub(crate) fn level(
    before: Option<MemoryPressure>,
    used: i64,
    total: i64,
) -> Option<MemoryPressure> {
    if total <= 0 {
        return None;
    }
    let holds = |(reached, left), at_least: &[MemoryPressure]| {
        let was = before.is_some_and(|before| at_least.contains(&before));
        let percent = if was { left } else { reached };
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

/// The level in one word, for people.
pub(crate) fn word(level: Option<MemoryPressure>) -> &'static str {
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
