//! Responses of a worker stream.

use tokio::sync::mpsc;
use tonic::Status;
use uuid::Uuid;

use crate::{error::Error, pb};

pub(super) use pb::{work_jobs_request::Message as Request, work_jobs_response::Message as Response};

/// Sending end of the responses of a stream.
pub(super) type ResponseSender = mpsc::Sender<Result<pb::WorkJobsResponse, Status>>;

/// Request to cancel a job held by the worker.
pub(super) fn cancellation(id: Uuid, lease_id: Uuid, reason: Option<String>, actor: Option<String>) -> Response {
    Response::Cancel(pb::JobCancellation { job_id: id.to_string(), lease_id: lease_id.to_string(), reason, actor })
}

/// Notice of a lost lease.
pub(super) fn lease_lost(id: Uuid, lease_id: Uuid) -> Response {
    Response::LeaseLost(pb::JobLease { job_id: id.to_string(), lease_id: lease_id.to_string() })
}

/// Refusal of a report.
pub(super) fn refusal(number: i64, job_id: String, error: &Error) -> Response {
    if let Error::Internal(cause) = error {
        tracing::error!(error = %crate::error::Chain(cause.as_ref()), "failed to apply a report of a worker");
    }
    let (code, reason) = error.code_and_reason();
    Response::Refused(pb::ReportRefused { number, job_id, code, reason: reason.into(), message: error.to_string() })
}

/// Sends the status of an unreadable request to the worker, before the end of the stream.
pub(super) async fn send_failure(responses: &ResponseSender, status: Status) {
    // A failed connection has no details and no receiver.
    if !status.details().is_empty() {
        let _ = responses.send(Err(status)).await;
    }
}
