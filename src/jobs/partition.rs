//! Partitions of the waiting jobs: one per queue, job type, priority and concurrency key.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::entity::job;

/// Waiting jobs with the same queue, type, priority and concurrency key. Workers claim the oldest job first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Partition {
    pub queue: String,
    pub job_type: String,
    pub priority: i32,
    /// Concurrency key; empty for jobs without a key.
    pub key: String,
}

/// Position of a job in a partition: `scheduled_at`, then the id.
pub(crate) type QueuePosition = (DateTime<Utc>, Uuid);

impl Partition {
    /// Partition and position of a job. `None` for a job without a queue or a scheduled time, as no worker can claim it.
    pub(crate) fn of(job: &job::Model) -> Option<(Self, QueuePosition)> {
        let partition = Self {
            queue: job.queue_name.clone()?,
            job_type: job.job_type.clone(),
            priority: job.priority,
            key: job.concurrency_key.clone(),
        };
        Some((partition, (job.scheduled_at?, job.id)))
    }
}
