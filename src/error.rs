//! Errors of the service, and their conversion to gRPC statuses.

use std::{collections::HashMap, error::Error as StdError, sync::Arc, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub use self::{
    chain::Chain,
    database::{StorageFault, busy, code, is_away},
};
use crate::pb::{self, ErrorReason};

mod chain;
mod database;

/// The `domain` of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "watchpost.v1";

/// Retry delay suggested for a temporary failure.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Maximum length of client text repeated in an error, in bytes. Errors travel in headers; some
/// clients allow only 8 KiB, and close the whole connection beyond that.
const LONGEST_FIELD: usize = 200;
const LONGEST_PROBLEM: usize = 300;

/// Maximum number of dependents listed in an error.
const USERS_TOLD: usize = 20;

/// Result with [`Error`] as the default error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Failure of a call. The displayed text is the status message for the client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{resource} `{id}` does not exist")]
    NotFound { resource: &'static str, id: String },
    #[error("`{field}` {problem}")]
    Invalid { field: String, problem: String },
    #[error("the database refuses a value of the request: {0}")]
    CheckViolated(String),
    #[error("the request is not the message that this method takes")]
    Malformed,
    #[error("{0}")]
    Unimplemented(String),
    #[error("the request is larger than the {limit} bytes that this server accepts")]
    TooLarge { limit: usize },
    #[error("the request takes more than {limit} bytes once it is decoded; split it")]
    TooManyElements { limit: u64 },
    #[error("{0}")]
    Busy(&'static str),
    #[error("as many calls are under way as the server allows: {limit}")]
    TooManyCalls { limit: usize },
    #[error("the request did not arrive whole within {within:?}")]
    MessageTimeout { within: Duration },
    #[error("`{field}` is taken: {problem}")]
    AlreadyExists { field: String, problem: String },
    #[error("`{field}` was used before for a request with other content")]
    KeyReused { field: &'static str },
    #[error("the {resource} is {status}, from which this is not possible")]
    WrongStatus {
        resource: &'static str,
        status: String,
    },
    #[error("`{field}` {problem}")]
    BrokenReference { field: String, problem: String },
    #[error("the {resource} is of the kind {kind}, for which this makes no sense")]
    WrongKind {
        resource: &'static str,
        kind: String,
    },
    #[error("the secrets of channels cannot be decrypted or encrypted: {problem}")]
    SecretsUnreadable { problem: String },
    #[error("the {resource} is in use by {users}")]
    InUse {
        resource: &'static str,
        /// Readable list of the dependents.
        users: String,
        /// Ids of the dependents, separated by commas.
        ids: String,
    },
    #[error(
        "`{field}` names a GPU that the host `{host}` tells of; another one may tell of it once that has said nothing of \
        it for 3 minutes"
    )]
    GpuClaimed {
        field: String,
        gpu_uuid: String,
        host: String,
    },
    #[error("`{field}` is held by the job `{job_id}`, which is {status}")]
    KeyHeld {
        field: &'static str,
        job_id: String,
        status: String,
    },
    #[error("the lease of the job `{job_id}` is not the current one; the job is {status}")]
    LeaseLost {
        job_id: String,
        status: String,
        /// Index of the failed item in a batch request.
        index: Option<usize>,
    },
    #[error("the job `{job_id}` is to be cancelled; acknowledge it")]
    JobCancelled {
        job_id: String,
        /// Index of the failed item in a batch request.
        index: Option<usize>,
    },
    #[error("the {resource} has changed since the expected version")]
    StaleVersion { resource: &'static str },
    #[error("changes after the cursor are no longer kept, about {lost_changes} are lost")]
    CursorExpired {
        earliest_cursor: String,
        lost_changes: i64,
    },
    #[error(
        "the database has another history than the one of the cursor: it was restored from a copy, promoted or moved; begin \
        anew with a snapshot, and forget the ids that are kept"
    )]
    HistoryReplaced {
        /// Id of the current incarnation of the history.
        history_id: String,
    },
    #[error("as many watches are open as the server allows: {limit}")]
    TooManyWatches { limit: usize },
    #[error("the database cannot be reached")]
    DatabaseAway,
    #[error(
        "the server is busy: the database works on as many calls as it may, and did not get to this one"
    )]
    DatabaseBusy,
    #[error(
        "the server is busy: the call has waited {:.1} s for its turn to search the database",
        .waited.as_secs_f64()
    )]
    NoTurn { waited: Duration },
    #[error("the server is busy: {waiting} calls wait for their turn to search the database")]
    LineFull { waiting: usize },
    #[error(
        "the call took longer than it may: its deadline has passed, or its query was cancelled"
    )]
    DeadlineExceeded,
    #[error("the storage of the database fails: {0}")]
    Storage(StorageFault),
    #[error("the database has chosen others among conflicting writes")]
    Contended,
    #[error("the server is starting")]
    Starting,
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("internal error")]
    Internal(#[source] Arc<dyn StdError + Send + Sync>),
}

impl Error {
    /// Creates the error of a field that is missing, malformed or out of range.
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field: shortened(field.into(), LONGEST_FIELD),
            problem: shortened(problem.into(), LONGEST_PROBLEM),
        }
    }

    /// Creates the error of a resource with dependents, given as names and ids. At least one
    /// dependent is required.
    pub fn in_use<'a>(
        resource: &'static str,
        by: &str,
        others: impl ExactSizeIterator<Item = (&'a str, String)>,
    ) -> Self {
        let more = others.len().saturating_sub(1);
        let (names, ids): (Vec<_>, Vec<_>) = others.take(USERS_TOLD).unzip();
        let first = names.first().copied().unwrap_or_default();
        let mut users = format!("the {by} `{first}`");
        if more > 0 {
            users = format!("{users} and {more} more");
        }
        Self::InUse {
            resource,
            users: shortened(users, LONGEST_PROBLEM),
            ids: ids.join(","),
        }
    }

    /// Creates the error of a GPU reported by another host, or by another reporter of the same
    /// host.
    pub fn gpu_claimed(field: String, gpu_uuid: String, host: String) -> Self {
        Self::GpuClaimed {
            field,
            gpu_uuid: shortened(gpu_uuid, LONGEST_FIELD),
            host: shortened(host, LONGEST_FIELD),
        }
    }

    /// Creates an internal error. The cause is logged, and not shown to the client.
    pub fn internal(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Internal(Arc::from(cause.into()))
    }

    /// Creates the internal error of a task that ended unexpectedly.
    pub fn internal_ended<T>(_: T) -> Self {
        Self::internal("a task has ended")
    }

    /// Copies a failure for another request of the same batch.
    #[must_use]
    pub fn again(&self) -> Self {
        if matches!(self, Self::DatabaseAway) {
            return Self::DatabaseAway;
        }
        if matches!(self, Self::DatabaseBusy) {
            return Self::DatabaseBusy;
        }
        if matches!(self, Self::Contended) {
            return Self::Contended;
        }
        if let Self::Storage(fault) = self {
            return Self::Storage(*fault);
        }
        if let Self::Internal(cause) = self {
            return Self::Internal(cause.clone());
        }
        Self::internal(self.to_string())
    }

    /// Sets the index of the failed item in a batch request.
    #[must_use]
    pub fn at(self, at: Option<usize>) -> Self {
        let mut error = self;
        if let Self::LeaseLost { index, .. } | Self::JobCancelled { index, .. } = &mut error {
            *index = at;
        }
        error
    }

    /// Returns the status code and the reason, for answers without a gRPC status.
    pub fn code_and_reason(&self) -> (i32, &'static str) {
        let (code, reason) = self.kind();
        let reason = reason.as_str_name().trim_start_matches("ERROR_REASON_");
        (code as i32, reason)
    }

    /// Returns the status code, and the reason on which clients branch.
    fn kind(&self) -> (Code, ErrorReason) {
        match self {
            Self::NotFound { .. } => (Code::NotFound, ErrorReason::NotFound),
            Self::Invalid { .. } => (Code::InvalidArgument, ErrorReason::InvalidField),
            Self::CheckViolated(_) => (Code::InvalidArgument, ErrorReason::CheckViolated),
            Self::Malformed => (Code::InvalidArgument, ErrorReason::MalformedMessage),
            Self::Unimplemented(_) => (Code::Unimplemented, ErrorReason::Unimplemented),
            Self::TooLarge { .. } => (Code::ResourceExhausted, ErrorReason::MessageTooLarge),
            Self::TooManyElements { .. } => (Code::ResourceExhausted, ErrorReason::TooManyElements),
            Self::Busy(_) | Self::DatabaseBusy | Self::NoTurn { .. } | Self::LineFull { .. } => {
                (Code::Unavailable, ErrorReason::ServerBusy)
            }
            Self::DeadlineExceeded => (Code::DeadlineExceeded, ErrorReason::DeadlineExceeded),
            Self::TooManyCalls { .. } => (Code::ResourceExhausted, ErrorReason::TooManyCalls),
            Self::MessageTimeout { .. } => (Code::DeadlineExceeded, ErrorReason::MessageTimeout),
            Self::AlreadyExists { .. } | Self::KeyHeld { .. } => {
                (Code::AlreadyExists, ErrorReason::AlreadyExists)
            }
            Self::KeyReused { .. } => (Code::AlreadyExists, ErrorReason::IdempotencyKeyReused),
            Self::WrongStatus { .. } => (Code::FailedPrecondition, ErrorReason::WrongStatus),
            Self::BrokenReference { .. } => {
                (Code::FailedPrecondition, ErrorReason::BrokenReference)
            }
            Self::InUse { .. } => (Code::FailedPrecondition, ErrorReason::InUse),
            Self::GpuClaimed { .. } => (Code::FailedPrecondition, ErrorReason::GpuClaimed),
            Self::WrongKind { .. } => (Code::FailedPrecondition, ErrorReason::WrongKind),
            Self::SecretsUnreadable { .. } => {
                (Code::FailedPrecondition, ErrorReason::SecretsUnreadable)
            }
            Self::LeaseLost { .. } => (Code::Aborted, ErrorReason::LeaseLost),
            Self::JobCancelled { .. } => (Code::Aborted, ErrorReason::JobCancelled),
            Self::StaleVersion { .. } => (Code::Aborted, ErrorReason::StaleVersion),
            Self::CursorExpired { .. } => (Code::OutOfRange, ErrorReason::CursorExpired),
            Self::HistoryReplaced { .. } => {
                (Code::FailedPrecondition, ErrorReason::HistoryReplaced)
            }
            Self::TooManyWatches { .. } => (Code::ResourceExhausted, ErrorReason::TooManyWatches),
            Self::DatabaseAway => (Code::Unavailable, ErrorReason::DatabaseAway),
            Self::Storage(StorageFault::Full) => {
                (Code::ResourceExhausted, ErrorReason::StorageFull)
            }
            Self::Storage(_) => (Code::Unavailable, ErrorReason::StorageFailing),
            Self::Contended => (Code::Aborted, ErrorReason::Contention),
            Self::Starting => (Code::Unavailable, ErrorReason::Starting),
            Self::ShuttingDown => (Code::Unavailable, ErrorReason::ShuttingDown),
            Self::Internal(_) => (Code::Internal, ErrorReason::Internal),
        }
    }

    fn details(&self, reason: ErrorReason) -> ErrorDetails {
        let reason = reason.as_str_name().trim_start_matches("ERROR_REASON_");
        let metadata = self.metadata().into_iter();
        let metadata = metadata
            .map(|(key, value)| (key.to_string(), value))
            .collect::<HashMap<_, _>>();
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
        if let Some((field, problem)) = self.violation() {
            details.add_bad_request_violation(field, problem);
        }
        if self.passes() {
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
        if let Self::LeaseLost {
            job_id,
            status,
            index,
        } = self
        {
            let about = vec![("job_id", job_id.clone()), ("status", status.clone())];
            return about.into_iter().chain(place(*index)).collect();
        }
        if let Self::JobCancelled { job_id, index } = self {
            let about = [("job_id", job_id.clone())];
            return about.into_iter().chain(place(*index)).collect();
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
            return vec![
                ("history_id", history_id.clone()),
                ("start", start.to_string()),
            ];
        }
        if let Self::CursorExpired {
            earliest_cursor,
            lost_changes,
        } = self
        {
            let lost = ("lost_changes", lost_changes.to_string());
            return vec![("earliest_cursor", earliest_cursor.clone()), lost];
        }
        Vec::new()
    }

    /// Returns the offending field and the problem, if a field is at fault.
    fn violation(&self) -> Option<(&str, &str)> {
        if let Self::KeyReused { field } = self {
            return Some((field, "was used before for a request with other content"));
        }
        if let Self::KeyHeld { field, .. } = self {
            return Some((field, "is held by another job"));
        }
        if let Self::GpuClaimed { field, .. } = self {
            return Some((field, "names a GPU that another host tells of"));
        }
        if let Self::Invalid { field, problem }
        | Self::AlreadyExists { field, problem }
        | Self::BrokenReference { field, problem } = self
        {
            return Some((field, problem));
        }
        None
    }

    /// Returns the storage fault, if storage is the cause.
    pub fn storage_fault(&self) -> Option<StorageFault> {
        if let Self::Storage(fault) = self {
            return Some(*fault);
        }
        None
    }

    /// Returns true if the database is unreachable, busy, or not writable: other writes fail as
    /// well, and a later retry may succeed.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::DatabaseAway | Self::DatabaseBusy) || self.storage_fault().is_some()
    }

    /// Returns true if the failure is temporary, and a retry may succeed.
    fn passes(&self) -> bool {
        matches!(
            self,
            Self::DatabaseAway
                | Self::DatabaseBusy
                | Self::NoTurn { .. }
                | Self::LineFull { .. }
                | Self::Storage(_)
                | Self::Contended
                | Self::Starting
                | Self::ShuttingDown
                | Self::TooManyWatches { .. }
                | Self::TooManyCalls { .. }
                | Self::MessageTimeout { .. }
                | Self::Busy(_)
        )
    }
}

/// Returns the metadata for the index of a failed item.
fn place(index: Option<usize>) -> Option<(&'static str, String)> {
    index.map(|index| ("index", index.to_string()))
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        if let Error::Internal(cause) = &error {
            tracing::error!(error = %Chain(cause), "a request failed for a reason of ours");
        }
        let (code, reason) = error.kind();
        Self::with_error_details(code, error.to_string(), error.details(reason))
    }
}

fn shortened(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push('…');
    }
    text
}
