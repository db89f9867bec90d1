//! Alerts: the rules that raise them, and their life afterwards.

pub mod change;
pub mod cooldown;
pub mod engine;
mod explain;
pub mod index;
pub mod legacy;
pub mod outcomes;
mod past;
#[cfg(test)]
mod random;
pub mod rule_service;
pub mod rules;
pub mod schedule;
pub mod service;
pub mod template;
mod trial;
