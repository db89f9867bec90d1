//! Alerts: the rules that raise them, and their life afterwards.

pub mod change;
mod channels;
pub mod cooldown;
pub mod deliveries;
pub mod engine;
pub mod legacy;
pub mod rule_service;
pub mod rules;
pub mod schedule;
pub mod service;
pub mod template;
