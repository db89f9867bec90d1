//! Mapping of errors to gRPC statuses: code, reason and temporary failures.

use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{chain::Chain, storage_fault::StorageFault, variants::Error};
use crate::pb::ErrorReason;

impl Error {
    /// Returns the status code and the reason, for answers without a gRPC status.
    pub fn code_and_reason(&self) -> (i32, &'static str) {
        let (code, reason) = self.code_and_error_reason();
        let reason = reason.as_str_name().trim_start_matches("ERROR_REASON_");
        (code as i32, reason)
    }

    /// Returns the status code, and the reason on which clients branch.
    fn code_and_error_reason(&self) -> (Code, ErrorReason) {
        match self {
            Self::NotFound { .. } => (Code::NotFound, ErrorReason::NotFound),
            Self::Invalid { .. } => (Code::InvalidArgument, ErrorReason::InvalidField),
            Self::CheckViolated(_) => (Code::InvalidArgument, ErrorReason::CheckViolated),
            Self::Malformed => (Code::InvalidArgument, ErrorReason::MalformedMessage),
            Self::Unimplemented(_) => (Code::Unimplemented, ErrorReason::Unimplemented),
            Self::TooLarge { .. } => (Code::ResourceExhausted, ErrorReason::MessageTooLarge),
            Self::TooManyElements { .. } => (Code::ResourceExhausted, ErrorReason::TooManyElements),
            Self::Busy(_) | Self::DatabaseBusy | Self::ScanTimeout { .. } | Self::ScanQueueFull { .. } => {
                (Code::Unavailable, ErrorReason::ServerBusy)
            }
            Self::DeadlineExceeded => (Code::DeadlineExceeded, ErrorReason::DeadlineExceeded),
            Self::TooManyCalls { .. } => (Code::ResourceExhausted, ErrorReason::TooManyCalls),
            Self::MessageTimeout { .. } => (Code::DeadlineExceeded, ErrorReason::MessageTimeout),
            Self::AlreadyExists { .. } | Self::KeyHeld { .. } => (Code::AlreadyExists, ErrorReason::AlreadyExists),
            Self::KeyReused { .. } => (Code::AlreadyExists, ErrorReason::IdempotencyKeyReused),
            Self::WrongStatus { .. } => (Code::FailedPrecondition, ErrorReason::WrongStatus),
            Self::BrokenReference { .. } => (Code::FailedPrecondition, ErrorReason::BrokenReference),
            Self::InUse { .. } => (Code::FailedPrecondition, ErrorReason::InUse),
            Self::GpuClaimed { .. } => (Code::FailedPrecondition, ErrorReason::GpuClaimed),
            Self::WrongKind { .. } => (Code::FailedPrecondition, ErrorReason::WrongKind),
            Self::SecretsUnreadable { .. } => (Code::FailedPrecondition, ErrorReason::SecretsUnreadable),
            Self::LeaseLost { .. } => (Code::Aborted, ErrorReason::LeaseLost),
            Self::JobCancelled { .. } => (Code::Aborted, ErrorReason::JobCancelled),
            Self::StaleVersion { .. } => (Code::Aborted, ErrorReason::StaleVersion),
            Self::CursorExpired { .. } => (Code::OutOfRange, ErrorReason::CursorExpired),
            Self::HistoryReplaced { .. } => (Code::FailedPrecondition, ErrorReason::HistoryReplaced),
            Self::TooManyWatches { .. } => (Code::ResourceExhausted, ErrorReason::TooManyWatches),
            Self::DatabaseAway => (Code::Unavailable, ErrorReason::DatabaseAway),
            Self::Storage(StorageFault::Full) => (Code::ResourceExhausted, ErrorReason::StorageFull),
            Self::Storage(_) => (Code::Unavailable, ErrorReason::StorageFailing),
            Self::Contended => (Code::Aborted, ErrorReason::Contention),
            Self::Starting => (Code::Unavailable, ErrorReason::Starting),
            Self::ShuttingDown => (Code::Unavailable, ErrorReason::ShuttingDown),
            Self::Internal(_) => (Code::Internal, ErrorReason::Internal),
        }
    }

    /// Returns true if the failure is temporary, and a retry may succeed.
    pub(super) fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::DatabaseAway
                | Self::DatabaseBusy
                | Self::ScanTimeout { .. }
                | Self::ScanQueueFull { .. }
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

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        if let Error::Internal(cause) = &error {
            tracing::error!(error = %Chain(cause), "a request failed with an internal error");
        }
        let (code, reason) = error.code_and_error_reason();
        Self::with_error_details(code, error.to_string(), error.details(reason))
    }
}
