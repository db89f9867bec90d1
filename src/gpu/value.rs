//! A value of a sample, or the reason for its absence, and every encoding of that reason.

use crate::pb::AbsentReason;

/// Value of a sample, or the reason for its absence.
pub(super) type Value<T> = Result<T, AbsentReason>;

/// Prefix of every reason's name in the API.
const PREFIX: &str = "ABSENT_REASON_";

/// Letter of each reason in the column `absent_mask`, in the order of the numbers of the reasons.
const LETTERS: [(AbsentReason, char); 11] = [
    (AbsentReason::Unspecified, UNKNOWN_LETTER),
    (AbsentReason::NotSupported, 'N'),
    (AbsentReason::NoPermission, 'P'),
    (AbsentReason::DriverTooOld, 'O'),
    (AbsentReason::Mig, 'M'),
    (AbsentReason::GpuLost, 'L'),
    (AbsentReason::NotSampled, 'S'),
    (AbsentReason::NotReported, 'R'),
    (AbsentReason::DriverError, 'E'),
    (AbsentReason::TimedOut, 'T'),
    (AbsentReason::Asleep, 'A'),
];

/// Letter of an absent value without a known reason.
const UNKNOWN_LETTER: char = '?';

impl AbsentReason {
    /// Lower-case name without the prefix, such as `not_supported`: the value of a metric label, and
    /// of the column `absent_reasons` in rows that are older than `absent_mask`.
    pub(crate) fn label(self) -> String {
        let name = self.as_str_name();
        name.trim_start_matches(PREFIX).to_lowercase()
    }

    /// Reason with the given label. `None` if no reason has that label.
    pub(super) fn from_label(label: &str) -> Option<Self> {
        Self::from_str_name(&format!("{PREFIX}{}", label.to_uppercase()))
    }

    /// Letter of the reason with the given number in the API.
    pub(super) fn letter(number: i32) -> char {
        let mut letters = LETTERS.iter();
        letters.find(|(reason, _)| *reason as i32 == number).map_or(UNKNOWN_LETTER, |(_, letter)| *letter)
    }

    /// Reason with the given letter. `None` for the dot of a present value.
    pub(super) fn from_letter(letter: char) -> Option<Self> {
        let mut letters = LETTERS.iter();
        letters.find(|(_, known)| *known == letter).map(|(reason, _)| *reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_labels_can_be_read_again() {
        for (number, (reason, letter)) in (0..).zip(LETTERS) {
            assert_eq!(reason as i32, number);
            assert_eq!(AbsentReason::letter(number), letter);
            assert_eq!(AbsentReason::from_letter(letter), Some(reason));
            assert_eq!(AbsentReason::from_label(&reason.label()), Some(reason));
        }
        assert_eq!(AbsentReason::DriverTooOld.label(), "driver_too_old");
        assert_eq!(AbsentReason::from_label("nonsense"), None);
        assert_eq!(AbsentReason::from_letter('.'), None);
        assert_eq!(AbsentReason::letter(99), '?');
    }
}
