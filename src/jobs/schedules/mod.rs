//! Schedules: jobs created at the ticks of cron expressions.

mod check;
mod cron;
mod new_job;
mod revise;
mod service;
mod ticker;

pub use service::JobSchedules;
pub(super) use ticker::Ticker;
