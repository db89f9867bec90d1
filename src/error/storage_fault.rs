//! Faults of the storage under the database.

/// Fault that prevents writes to the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StorageFault {
    #[error("no space is left")]
    Full,
    #[error("the database is read-only")]
    ReadOnly,
    #[error("the storage fails")]
    Failing,
    #[error("the database file, or its write-ahead log, is missing")]
    Missing,
    #[error("the database file, or its write-ahead log, was replaced by another file")]
    Replaced,
    #[error("the database is corrupt")]
    Corrupt,
    #[error("the storage does not answer")]
    NotAnswering,
}
