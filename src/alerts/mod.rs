//! Alerts: the rules that raise them, and their life afterwards.

pub mod change;
pub mod cooldown;
pub mod engine;
pub mod index;
pub mod legacy;
pub mod outcomes;
pub mod rule_service;
pub mod rules;
pub mod schedule;
pub mod service;
pub mod template;
