//! Format and limits of a rule document.

/// Value of `format`.
pub(super) const FORMAT: &str = "watchpost.alert_rules";

/// Value of `version`.
pub(super) const VERSION: u32 = 1;

/// Largest number of rules in a document.
pub(super) const MAX_RULES: usize = 10_000;

/// Largest size of a document, in bytes.
pub(super) const MAX_BYTES: usize = 16 * 1024 * 1024;
