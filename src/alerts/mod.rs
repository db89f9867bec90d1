//! Alerts: the rules that raise them, and their life afterwards.

pub mod engine;
pub mod lifecycle;
pub mod rules;
pub mod silences;
pub mod suppression;
