//! Alerts: the rules that raise them, and their life afterwards.

mod bulk;
pub mod change;
mod channels;
pub mod cooldown;
mod create;
pub mod deliveries;
pub mod engine;
mod explain;
mod filter;
pub mod flapping;
pub mod index;
pub mod legacy;
pub mod outcomes;
mod past;
#[cfg(test)]
mod random;
mod rule_bulk;
mod rule_check;
mod rule_document;
pub mod rule_service;
pub mod rule_set;
mod rule_stats;
pub mod rules;
pub mod schedule;
pub mod service;
pub mod silences;
mod stats;
pub mod template;
pub mod transition;
mod trial;
