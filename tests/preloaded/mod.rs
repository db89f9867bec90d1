//! Libraries that are preloaded into the processes under test, and changed while those run by a control file.

use std::{
    ffi::OsString,
    fs::{self, File, Permissions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    process::Command,
    sync::OnceLock,
};

use tempfile::TempDir;

/// Source of a library and, once a test needs it, its compiled form.
pub struct Library {
    /// Path of the source, relative to the repository.
    source: &'static str,
    compiled: OnceLock<Vec<u8>>,
}

impl Library {
    /// The library with this source file.
    pub const fn new(source: &'static str) -> Self {
        Self { source, compiled: OnceLock::new() }
    }

    /// Compiles the library with rustc alone: it has no dependencies, and the lints of the crate do not apply to it.
    fn compile(&self) -> Vec<u8> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(self.source);
        let folder = TempDir::with_prefix("watchpost-library-").expect("a temporary directory");
        let library = folder.path().join("library.so");
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
}

/// Copy of a library with a control file of its own.
pub struct Preloaded {
    folder: TempDir,
    control: File,
}

impl Preloaded {
    /// The library, with a control file of this many zero bytes.
    pub fn new(library: &Library, control_bytes: u64) -> Self {
        let folder = TempDir::with_prefix("watchpost-preloaded-").expect("a temporary directory");
        let compiled = library.compiled.get_or_init(|| library.compile());
        fs::write(folder.path().join("library.so"), compiled).expect("a file in it");
        let path = folder.path().join("control");
        let control = File::options().create_new(true).read(true).write(true).open(&path).expect("a file in it");
        control.set_len(control_bytes).expect("a file that can grow");
        // The process may run as another user.
        for path in [folder.path(), &path] {
            fs::set_permissions(path, Permissions::from_mode(0o777)).expect("our own file");
        }
        Self { folder, control }
    }

    /// The variables of a process that loads the library, which finds its control file by the variable `control`.
    pub fn variables(&self, control: &'static str) -> [(&'static str, OsString); 2] {
        let at = |name| self.folder.path().join(name).into_os_string();
        [("LD_PRELOAD", at("library.so")), (control, at("control"))]
    }

    /// Writes to the control file.
    pub fn write(&self, bytes: &[u8], offset: u64) {
        let written = self.control.write_all_at(bytes, offset);
        written.expect("the control file");
    }

    /// Reads from the control file.
    pub fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let read = self.control.read_exact_at(&mut bytes, offset);
        read.expect("the control file");
        bytes
    }
}
