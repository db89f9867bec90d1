//! Details of error statuses: `ErrorInfo` with metadata, field violations and retry delays.

use std::{collections::HashMap, time::Duration};

use tonic_types::ErrorDetails;

use super::variants::Error;
use crate::pb::{self, ErrorReason};

/// The `domain` of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "watchpost.v1";

/// Retry delay suggested for a temporary failure.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Error {
    /// Builds the details of the status with this reason.
    pub(super) fn details(&self, reason: ErrorReason) -> ErrorDetails {
        let reason = reason.as_str_name().trim_start_matches("ERROR_REASON_");
        let metadata =
            self.metadata().into_iter().map(|(key, value)| (key.to_string(), value)).collect::<HashMap<_, _>>();
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
        if let Some((field, problem)) = self.violation() {
            details.add_bad_request_violation(field, problem);
        }
        if self.is_temporary() {
            details.set_retry_info(Some(RETRY_AFTER));
        }
        details
    }

    /// Returns the metadata of `ErrorInfo`.
    fn metadata(&self) -> Vec<(&'static str, String)> {
        if let Self::NotFound { resource, id } = self {
            return vec![("resource", (*resource).to_string()), ("id", id.clone())];
        }
        if let Self::KeyHeld { job_id, status, .. } = self {
            return vec![("job_id", job_id.clone()), ("status", status.clone())];
        }
        if let Self::LeaseLost { job_id, status, index } = self {
            let metadata = vec![("job_id", job_id.clone()), ("status", status.clone())];
            return metadata.into_iter().chain(index_metadata(*index)).collect();
        }
        if let Self::JobCancelled { job_id, index } = self {
            let metadata = [("job_id", job_id.clone())];
            return metadata.into_iter().chain(index_metadata(*index)).collect();
        }
        if let Self::WrongStatus { status, .. } = self {
            return vec![("status", status.clone())];
        }
        if let Self::WrongKind { kind, .. } = self {
            return vec![("kind", kind.clone())];
        }
        if let Self::GpuClaimed { gpu_uuid, host, .. } = self {
            return vec![("gpu_uuid", gpu_uuid.clone()), ("host", host.clone())];
        }
        if let Self::InUse { ids, .. } = self {
            return vec![("used_by", ids.clone())];
        }
        if let Self::HistoryReplaced { history_id } = self {
            let start = pb::WatchStart::Snapshot.as_str_name();
            return vec![("history_id", history_id.clone()), ("start", start.to_string())];
        }
        if let Self::CursorExpired { earliest_cursor, lost_changes } = self {
            let lost = ("lost_changes", lost_changes.to_string());
            return vec![("earliest_cursor", earliest_cursor.clone()), lost];
        }
        Vec::new()
    }

    /// Returns the offending field and the problem, if a field is at fault.
    fn violation(&self) -> Option<(&str, &str)> {
        if let Self::KeyReused { field } = self {
            return Some((field, "was already used for a request with different content"));
        }
        if let Self::KeyHeld { field, .. } = self {
            return Some((field, "is held by another job"));
        }
        if let Self::GpuClaimed { field, .. } = self {
            return Some((field, "names a GPU that another host reports"));
        }
        if let Self::Invalid { field, problem }
        | Self::AlreadyExists { field, problem }
        | Self::BrokenReference { field, problem } = self
        {
            return Some((field, problem));
        }
        None
    }
}

/// Returns the metadata for the index of a failed item.
fn index_metadata(index: Option<usize>) -> Option<(&'static str, String)> {
    index.map(|index| ("index", index.to_string()))
}
