//! Makes file operations of a process fail, by a library that is preloaded into it.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    sync::OnceLock,
};

use tempfile::TempDir;

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
        Self {
            operations,
            errno,
            one_in: 1,
            at_most: u32::MAX,
        }
    }

    /// The next of these operations fails with this error.
    pub fn next(operations: u32, errno: u32) -> Self {
        Self {
            at_most: 1,
            ..Self::every(operations, errno)
        }
    }
}

/// Controls the faults of processes that were started with [`Faults::variables`].
pub struct Faults {
    folder: TempDir,
    control: File,
    matched: String,
}

impl Faults {
    /// No fault yet. Files are affected whose path contains one of these parts.
    pub fn new(matched: &[&str]) -> Self {
        static LIBRARY: OnceLock<Vec<u8>> = OnceLock::new();
        let folder = TempDir::with_prefix("watchpost-faults-").expect("a temporary directory");
        let library = LIBRARY.get_or_init(compile);
        fs::write(folder.path().join("libfaults.so"), library).expect("a file in it");
        let control = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(folder.path().join("control"))
            .expect("a file in it");
        control.set_len(20).expect("a file that can grow");
        // The process may run as another user.
        for path in [folder.path().to_path_buf(), folder.path().join("control")] {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("our own file");
        }
        Self {
            folder,
            control,
            matched: matched.join(":"),
        }
    }

    /// The variables of a process that is to have the faults.
    pub fn variables(&self) -> [(&'static str, OsString); 3] {
        let at = |name| self.folder.path().join(name).into_os_string();
        [
            ("LD_PRELOAD", at("libfaults.so")),
            ("WATCHPOST_FAULT_CONTROL", at("control")),
            ("WATCHPOST_FAULT_MATCH", self.matched.clone().into()),
        ]
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

    /// How many operations have failed.
    pub fn struck(&self) -> u32 {
        let mut number = [0; 4];
        self.control
            .read_exact_at(&mut number, 16)
            .expect("the control file");
        u32::from_ne_bytes(number)
    }

    fn write(&self, place: u64, number: u32) {
        let number = number.to_ne_bytes();
        self.control
            .write_all_at(&number, place * 4)
            .expect("the control file");
    }
}

/// Compiles the library with rustc alone: it has no dependencies, and the lints of the crate are not for it.
fn compile() -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/storage_faults/shim.rs");
    let folder = TempDir::with_prefix("watchpost-faults-").expect("a temporary directory");
    let library = folder.path().join("libfaults.so");
    let compiled = Command::new("rustc")
        .args(["--edition", "2024", "--crate-type", "cdylib", "-O"])
        .arg(source)
        .arg("-o")
        .arg(&library)
        .output()
        .expect("rustc, which has compiled this test");
    let problems = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "{problems}");
    fs::read(library).expect("the library that was compiled")
}
