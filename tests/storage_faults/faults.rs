//! Makes file operations of a process fail, by a library that is preloaded into it.

use std::ffi::OsString;

use crate::preloaded::{Library, Preloaded};

static LIBRARY: Library = Library::new("tests/storage_faults/shim.rs");

/// Error numbers of Linux.
pub const EIO: u32 = 5;
pub const ENOSPC: u32 = 28;
pub const EROFS: u32 = 30;
pub const EDQUOT: u32 = 122;

/// The operations that can fail, as `shim.rs` has them.
pub const WRITE: u32 = 1;
pub const SYNC: u32 = 2;
pub const READ: u32 = 4;
pub const TRUNCATE: u32 = 8;
pub const SHORT_WRITE: u32 = 16;

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The operations, added up.
    pub operations: u32,
    /// The error number that they fail with.
    pub errno: u32,
    /// One in so many fails, by chance.
    pub one_in: u32,
    /// How many fail.
    pub at_most: u32,
}

impl Fault {
    /// Every one of these operations fails with this error.
    pub fn every(operations: u32, errno: u32) -> Self {
        Self { operations, errno, one_in: 1, at_most: u32::MAX }
    }

    /// The next of these operations fails with this error.
    pub fn next(operations: u32, errno: u32) -> Self {
        Self { at_most: 1, ..Self::every(operations, errno) }
    }
}

/// Controls the faults of processes that were started with [`Faults::variables`].
pub struct Faults {
    library: Preloaded,
    matched: String,
}

impl Faults {
    /// No fault yet. Files are affected whose path contains one of these parts.
    pub fn new(matched: &[&str]) -> Self {
        Self { library: Preloaded::new(&LIBRARY, 20), matched: matched.join(":") }
    }

    /// The variables of a process that is to have the faults.
    pub fn variables(&self) -> [(&'static str, OsString); 3] {
        let [library, control] = self.library.variables("WATCHPOST_FAULT_CONTROL");
        let matched = ("WATCHPOST_FAULT_MATCH", self.matched.clone().into());
        [library, control, matched]
    }

    /// Has operations fail from now on.
    pub fn begin(&self, fault: Fault) {
        self.write(0, 0);
        self.write(1, fault.errno);
        self.write(2, fault.one_in);
        self.write(3, fault.at_most);
        self.write(0, fault.operations);
    }

    /// Has them succeed again.
    pub fn end(&self) {
        self.write(0, 0);
    }

    /// Number of operations that have failed.
    pub fn struck(&self) -> u32 {
        u32::from_ne_bytes(self.library.read(16))
    }

    fn write(&self, place: u64, number: u32) {
        self.library.write(&number.to_ne_bytes(), place * 4);
    }
}
