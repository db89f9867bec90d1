//! Workers: `JobWorkerService`, the streams of workers, the jobs assigned to each, and the progress that they report.

pub(super) mod assignments;
pub(super) mod progress;
pub(super) mod service;
pub(super) mod stream;
