//! The services that clients of the queue call: jobs, queues and types. Workers have their own in `worker`.

pub(super) mod job_service;
pub(super) mod queue_service;
pub(super) mod type_service;
