//! The error type of the service, and its constructors.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use super::storage_fault::StorageFault;

/// Maximum length of client text repeated in an error, in bytes. Errors travel in headers; some
/// clients allow only 8 KiB, and close the whole connection beyond that.
const MAX_FIELD_BYTES: usize = 200;
const MAX_PROBLEM_BYTES: usize = 300;

/// Maximum number of dependents listed in an error.
const MAX_LISTED_DEPENDENTS: usize = 20;

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
    #[error("the request is not a valid message of this method")]
    Malformed,
    #[error("{0}")]
    Unimplemented(String),
    #[error("the request exceeds the maximum of {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the decoded request exceeds the maximum of {limit} bytes; split the request")]
    TooManyElements { limit: u64 },
    #[error("{0}")]
    Busy(&'static str),
    #[error("the maximum of {limit} concurrent calls is reached; retry later")]
    TooManyCalls { limit: usize },
    #[error("the request did not arrive completely within {within:?}")]
    MessageTimeout { within: Duration },
    #[error("`{field}` is taken: {problem}")]
    AlreadyExists { field: String, problem: String },
    #[error("`{field}` was already used for a request with different content")]
    KeyReused { field: &'static str },
    #[error("the {resource} is {status}, and this status does not allow the operation")]
    WrongStatus { resource: &'static str, status: String },
    #[error("`{field}` {problem}")]
    BrokenReference { field: String, problem: String },
    #[error("the operation does not apply to a {resource} of the kind {kind}")]
    WrongKind { resource: &'static str, kind: String },
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
        "`{field}` names a GPU that the host `{host}` reports; another host may take over after 3 minutes without a report"
    )]
    GpuClaimed { field: String, gpu_uuid: String, host: String },
    #[error("`{field}` is held by the job `{job_id}`, which is {status}")]
    KeyHeld { field: &'static str, job_id: String, status: String },
    #[error("the lease of the job `{job_id}` is no longer current; the job is {status}")]
    LeaseLost {
        job_id: String,
        status: String,
        /// Index of the failed item in a batch request.
        index: Option<usize>,
    },
    #[error("cancellation of the job `{job_id}` was requested; acknowledge the cancellation")]
    JobCancelled {
        job_id: String,
        /// Index of the failed item in a batch request.
        index: Option<usize>,
    },
    #[error("the {resource} has changed since the expected version; read again and retry")]
    StaleVersion { resource: &'static str },
    #[error("changes after the cursor were pruned; about {lost_changes} changes are lost")]
    CursorExpired { earliest_cursor: String, lost_changes: i64 },
    #[error(
        "the cursor belongs to another history: the database was restored from a copy, promoted or moved; \
        start again with a snapshot, and discard stored ids"
    )]
    HistoryReplaced {
        /// Id of the current incarnation of the history.
        history_id: String,
    },
    #[error("the maximum of {limit} open watches is reached; retry later")]
    TooManyWatches { limit: usize },
    #[error("the database cannot be reached")]
    DatabaseAway,
    #[error("the server is busy: no database connection became free in time; retry later")]
    DatabaseBusy,
    #[error(
        "the server is busy: the call has waited {:.1} s for a scan slot; retry later",
        .waited.as_secs_f64()
    )]
    ScanTimeout { waited: Duration },
    #[error("the server is busy: {waiting} calls wait for a scan slot; retry later")]
    ScanQueueFull { waiting: usize },
    #[error("the deadline of the call has passed, or its query was cancelled")]
    DeadlineExceeded,
    #[error("the storage of the database fails: {0}")]
    Storage(StorageFault),
    #[error("write conflict; retry")]
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
            field: truncate(field.into(), MAX_FIELD_BYTES),
            problem: truncate(problem.into(), MAX_PROBLEM_BYTES),
        }
    }

    /// Creates the error of a resource with dependents, given as names and ids. At least one
    /// dependent is required.
    pub fn in_use<'a>(
        resource: &'static str,
        by: &str,
        others: impl ExactSizeIterator<Item = (&'a str, String)>,
    ) -> Self {
        let others_count = others.len().saturating_sub(1);
        let (names, ids): (Vec<_>, Vec<_>) = others.take(MAX_LISTED_DEPENDENTS).unzip();
        let first = names.first().copied().unwrap_or_default();
        let mut users = format!("the {by} `{first}`");
        if others_count > 0 {
            users = format!("{users} and {others_count} more");
        }
        Self::InUse { resource, users: truncate(users, MAX_PROBLEM_BYTES), ids: ids.join(",") }
    }

    /// Creates the error of a GPU reported by another host, or by another reporter of the same
    /// host.
    pub fn gpu_claimed(field: String, gpu_uuid: String, host: String) -> Self {
        Self::GpuClaimed { field, gpu_uuid: truncate(gpu_uuid, MAX_FIELD_BYTES), host: truncate(host, MAX_FIELD_BYTES) }
    }

    /// Creates an internal error. The cause is logged, and not shown to the client.
    pub fn internal(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Internal(Arc::from(cause.into()))
    }

    /// Creates the internal error of a task that ended unexpectedly.
    pub fn task_ended<T>(_: T) -> Self {
        Self::internal("a task has ended")
    }

    /// Copies a failure for another request of the same batch.
    #[must_use]
    pub fn duplicate(&self) -> Self {
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
    pub fn with_index(self, position: Option<usize>) -> Self {
        let mut error = self;
        if let Self::LeaseLost { index, .. } | Self::JobCancelled { index, .. } = &mut error {
            *index = position;
        }
        error
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
}

/// Truncates a text to `max_bytes`, and marks the truncation with an ellipsis.
fn truncate(mut text: String, max_bytes: usize) -> String {
    if text.len() > max_bytes {
        text.truncate(text.floor_char_boundary(max_bytes));
        text.push('…');
    }
    text
}
