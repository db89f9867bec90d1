//! Failures of NVML: their cause, and their meaning for a GPU.

use std::path::Path;

use nvml_wrapper::error::NvmlError;

use crate::{error::Chain, pb::AbsentReason};

/// Return codes of NVML without a name in the wrapper.
const VERSION_MISMATCH: u32 = 25;
const DEPRECATED: u32 = 26;
const GPU_NOT_FOUND: u32 = 28;

/// Failure to sample a GPU.
#[derive(Debug, Clone)]
pub(in crate::gpu) struct Failure {
    /// Human-readable cause.
    pub text: String,
    /// Reason for the absence of the GPU's values.
    pub reason: AbsentReason,
    /// True if the failure affects every GPU, so that NVML must be opened again.
    pub affects_session: bool,
    /// Meaning of the failure for the GPU.
    pub kind: FailureKind,
}

/// Meaning of a failure for a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gpu) enum FailureKind {
    /// The GPU is gone.
    Lost,
    /// The GPU is unusable until a reset.
    ResetRequired,
    /// The driver is gone or was replaced. The state of the GPU is unknown.
    Driver,
    /// Other failure. The state of the GPU is unknown.
    Other,
}

impl From<NvmlError> for Failure {
    fn from(error: NvmlError) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "NVML has many more errors")]
        let reason = match error {
            NvmlError::NotSupported | NvmlError::UnexpectedVariant(DEPRECATED) => AbsentReason::NotSupported,
            NvmlError::NoPermission => AbsentReason::NoPermission,
            NvmlError::FailedToLoadSymbol(_)
            | NvmlError::FunctionNotFound
            | NvmlError::UnexpectedVariant(VERSION_MISMATCH) => AbsentReason::DriverTooOld,
            NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::UnexpectedVariant(GPU_NOT_FOUND) => {
                AbsentReason::GpuLost
            }
            _ => AbsentReason::DriverError,
        };
        let affects_session =
            matches!(error, NvmlError::Uninitialized | NvmlError::DriverNotLoaded | NvmlError::LibRmVersionMismatch);
        Self { text: describe(&error), reason, affects_session, kind: FailureKind::from(&error) }
    }
}

impl From<&NvmlError> for FailureKind {
    fn from(error: &NvmlError) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "NVML has many more errors")]
        match error {
            // A known GPU that is not found has fallen off the bus.
            NvmlError::GpuLost | NvmlError::NotFound | NvmlError::UnexpectedVariant(GPU_NOT_FOUND) => Self::Lost,
            NvmlError::ResetRequired => Self::ResetRequired,
            NvmlError::Uninitialized
            | NvmlError::DriverNotLoaded
            | NvmlError::LibRmVersionMismatch
            | NvmlError::LibloadingError(_) => Self::Driver,
            _ => Self::Other,
        }
    }
}

/// Human-readable text of an NVML error.
#[expect(clippy::wildcard_enum_match_arm, reason = "other errors have a readable text")]
fn describe(error: &NvmlError) -> String {
    match error {
        NvmlError::DriverNotLoaded => "the NVIDIA driver is not loaded".into(),
        NvmlError::LibRmVersionMismatch => {
            "the NVIDIA driver was upgraded, and the one that runs no longer fits its library".into()
        }
        NvmlError::NoPermission => "the server may not talk to the NVIDIA driver".into(),
        error => error.to_string(),
    }
}

/// Failure to open the library.
pub(in crate::gpu) fn open_failure(path: &Path, error: NvmlError) -> Failure {
    let name = path.display();
    let text = if let NvmlError::LibloadingError(error) = &error {
        let error = Chain(error).to_string();
        if error.contains("No such file") {
            format!("{name} was not found")
        } else {
            format!("{name} does not load: {error}")
        }
    } else if let NvmlError::FailedToLoadSymbol(_) = error {
        format!("{name} is not NVML, or an old one")
    } else {
        describe(&error)
    };
    Failure { text, affects_session: true, ..Failure::from(error) }
}
