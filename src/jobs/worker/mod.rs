//! Workers: `JobWorkerService`, worker streams, the jobs assigned to streams, and the throttle of progress.

pub(super) mod assignments;
mod lease_state;
pub(super) mod progress;
pub(super) mod service;
pub(super) mod stream;
