//! The rule engine: the compiled rules, the index that finds those matching an event, schedules and dedup-key
//! templates.

pub mod index;
pub mod judge;
pub mod live;
pub mod outcomes;
#[cfg(test)]
pub(super) mod random;
pub mod rule_set;
pub mod schedule;
pub mod template;
