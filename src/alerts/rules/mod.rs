//! Alert rules: `AlertRuleService`, the bounds of a rule, JSON documents, statistics, explanations and trials.

pub(super) mod bulk;
pub(super) mod channels;
pub(super) mod check;
pub(super) mod document;
pub(super) mod explain;
pub mod legacy;
pub(super) mod past;
pub mod service;
pub(super) mod stats;
pub(super) mod trial;
