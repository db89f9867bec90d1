//! Alerts: the rules that raise them, and their life afterwards.

pub mod change;
pub mod cooldown;
pub mod engine;
pub mod flapping;
pub mod index;
pub mod legacy;
pub mod outcomes;
mod rule_bulk;
mod rule_check;
mod rule_document;
pub mod rule_service;
mod rule_stats;
pub mod rules;
pub mod schedule;
pub mod service;
pub mod silences;
pub mod template;
