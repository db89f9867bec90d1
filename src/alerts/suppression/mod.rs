//! Suppression within a rule: cooldowns by dedup key, and the flapping limit.

pub mod cooldown;
pub mod flapping;
