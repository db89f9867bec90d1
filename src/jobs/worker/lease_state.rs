//! States of leases, as reported to workers.

use uuid::Uuid;

use crate::{
    entity::job::Model,
    error::{Error, Result},
    pb,
    rpc::time,
};

/// State of a lease after an extension. `jobs` are the jobs of the task: exactly one.
pub(super) fn lease_state(jobs: &[Model]) -> Result<pb::JobLeaseState> {
    let job = jobs.first();
    let job = job.ok_or_else(|| Error::internal("a job of a task is missing"))?;
    Ok(pb::JobLeaseState {
        job_id: job.id.to_string(),
        lost: false,
        lease_expires_at: job.lease_expires_at.map(time::to_proto),
        cancel_requested: job.cancel_requested_at.is_some(),
        cancel_reason: job.cancel_reason.clone(),
    })
}

/// State of a lost lease.
pub(super) fn lost_lease_state(id: Uuid) -> pb::JobLeaseState {
    pb::JobLeaseState { job_id: id.to_string(), lost: true, ..Default::default() }
}
