//! Pure state machine of jobs, without database and clock.
//!
//! Every status change of a job is decided here, together with its attempts, transitions and feed changes.

mod apply;
mod end;
mod job;
mod record;
mod report;
#[cfg(test)]
mod tests;

pub(super) use job::{Cause, ChangedColumns, Failure, Job, LogLine, Move, Progress, Report, label};
