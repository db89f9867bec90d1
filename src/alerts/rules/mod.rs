//! Alert rules: `AlertRuleService`, validation, JSON documents, statistics, explanations and
//! backtests.

pub(super) mod announcement;
pub(super) mod backtest;
pub(super) mod bulk;
pub(super) mod channels;
pub(super) mod check;
pub(super) mod document;
pub(super) mod explain;
pub mod legacy;
pub mod service;
pub(super) mod stats;
pub(super) mod stored_events;
pub(super) mod zones;
