//! The integration tests: real clients, a real server, both databases.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, unreachable_pub)]

mod alert_rules;
mod alerts;
mod api;
mod bad_input;
mod cameras;
#[path = "../checker/mod.rs"]
mod checker;
#[path = "../clock_shim/mod.rs"]
mod clock_shim;
mod clocks;
mod columns;
mod connections;
mod crash;
mod events;
mod gpu;
mod guarantees;
mod health;
mod history;
#[path = "../job_crash/mod.rs"]
mod job_crash;
mod jobs;
mod limits;
mod main_job;
mod metrics;
mod notifications;
#[path = "../oracle/mod.rs"]
mod oracle;
#[path = "../preloaded/mod.rs"]
mod preloaded;
mod process;
mod scans;
mod schema;
mod silences;
mod storage;
#[path = "../storage_faults/mod.rs"]
mod storage_faults;
mod support;
mod time_zones;
mod top;
mod watch;
mod zones;
