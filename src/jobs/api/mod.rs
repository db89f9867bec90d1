//! Services for clients of the queue: jobs, queues and types. The service for workers is in `worker`.

pub(super) mod job_service;
pub(super) mod queue_service;
pub(super) mod type_service;
