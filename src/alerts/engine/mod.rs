//! Rule engine: compiled rules, rule index, schedules and dedup key templates.

pub mod evaluate;
pub mod index;
pub mod live;
pub mod outcomes;
#[cfg(test)]
pub(super) mod random;
pub mod rule;
pub mod rule_set;
pub mod schedule;
pub mod template;
