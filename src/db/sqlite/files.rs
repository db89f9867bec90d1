//! Files of a SQLite database: identity of the open files, and free space of the volume.

use std::path::{Path, PathBuf};

use crate::error::StorageFault;

/// Free space, in bytes, below which a volume counts as full.
#[cfg(target_os = "linux")]
const MIN_FREE_BYTES: u64 = 64 * 1024;

/// Database file and write-ahead log, as opened.
#[derive(Debug)]
pub(crate) struct Files {
    database: OpenFile,
    log: OpenFile,
}

/// Path and identity of an open file.
#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    id: FileId,
}

/// Identity of a file: device and inode.
type FileId = (u64, u64);

impl Files {
    /// Returns the files of an open database with a write-ahead log. `None` if a file is missing.
    pub(crate) fn open(database: &Path) -> Option<Self> {
        // SQLite follows symbolic links, and places the log beside the target.
        let path = std::fs::canonicalize(database).ok()?;
        Some(Self { log: OpenFile::new(with_suffix(&path, "-wal"))?, database: OpenFile::new(path)? })
    }

    /// Returns the fault if a file at its path is missing or is not the open file. Commits to a
    /// deleted or replaced file are lost with the process.
    pub(crate) fn fault(&self) -> Option<StorageFault> {
        self.database.fault().or_else(|| self.log.fault())
    }

    /// Returns true if the volume of the database has no free space for this process.
    #[cfg(target_os = "linux")]
    pub(crate) fn volume_is_full(&self) -> bool {
        let Ok(volume) = rustix::fs::statvfs(&self.database.path) else {
            return false;
        };
        // Blocks reserved for root are available to root only.
        let blocks = if rustix::process::geteuid().is_root() { volume.f_bfree } else { volume.f_bavail };
        blocks.saturating_mul(volume.f_frsize) < MIN_FREE_BYTES
    }

    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unused_self, reason = "only Linux is asked")]
    pub(crate) fn volume_is_full(&self) -> bool {
        false
    }

    /// Renames the write-ahead log of a replaced database file, if the log is still at its path.
    /// SQLite would otherwise apply the old log to the new file.
    pub(crate) fn rename_stale_log(&self) {
        if self.database.fault().is_none() || self.log.fault().is_some() {
            return;
        }
        for path in [self.log.path.clone(), with_suffix(&self.database.path, "-shm")] {
            let renamed = std::fs::rename(&path, with_suffix(&path, ".replaced"));
            let path = path.display();
            match renamed {
                Ok(()) => {
                    tracing::warn!(%path, "renamed the write-ahead log of the replaced database");
                }
                Err(error) => {
                    tracing::warn!(%path, %error, "the write-ahead log of the replaced database cannot be renamed");
                }
            }
        }
    }
}

impl OpenFile {
    fn new(path: PathBuf) -> Option<Self> {
        let id = file_id(&path)?;
        Some(Self { path, id })
    }

    fn fault(&self) -> Option<StorageFault> {
        match file_id(&self.path) {
            None => Some(StorageFault::Missing),
            Some(id) if id != self.id => Some(StorageFault::Replaced),
            Some(_) => None,
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

#[cfg(unix)]
fn file_id(path: &Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}
