//! Alerts: rules, rule engine, suppression, silences and the lifecycle of alerts.

pub mod engine;
pub mod lifecycle;
pub mod rules;
pub mod silences;
pub mod suppression;
