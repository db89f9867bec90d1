//! Reporting between hosts: `watchpost agent` sends samples, `RecordGpuStats` receives and checks them.

pub mod agent;
pub(super) mod check;
pub(super) mod report;
