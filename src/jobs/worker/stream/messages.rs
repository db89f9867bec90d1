//! What a worker is told of its jobs.

use tonic::Status;
use uuid::Uuid;

use super::{End, Out, Response};
use crate::{error::Error, pb};

pub(super) fn cancellation(
    id: Uuid,
    lease_id: Uuid,
    reason: Option<String>,
    actor: Option<String>,
) -> Response {
    Response::Cancel(pb::JobCancellation {
        job_id: id.to_string(),
        lease_id: lease_id.to_string(),
        reason,
        actor,
    })
}

pub(super) fn lease_lost(id: Uuid, lease_id: Uuid) -> Response {
    Response::LeaseLost(pb::JobLease {
        job_id: id.to_string(),
        lease_id: lease_id.to_string(),
    })
}

pub(super) fn refusal(number: i64, job_id: String, error: &Error) -> Response {
    if let Error::Internal(cause) = error {
        tracing::error!(error = %crate::error::Chain(cause.as_ref()), "a report failed for a reason of ours");
    }
    let (code, reason) = error.code_and_reason();
    Response::Refused(pb::ReportRefused {
        number,
        job_id,
        code,
        reason: reason.into(),
        message: error.to_string(),
    })
}

/// End of a stream whose next request cannot be read. A failure of the request itself is told to the worker.
pub(super) async fn broken(out: &Out, status: Status) -> End {
    // A failure of the connection has no details, and nobody to be told.
    if !status.details().is_empty() {
        let _ = out.send(Err(status)).await;
    }
    End::Broken
}
