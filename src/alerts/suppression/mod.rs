//! Suppression within a rule: cooldowns by dedup key, and the limit on alerts of a flapping rule.

pub mod cooldown;
pub mod flapping;
