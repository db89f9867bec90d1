//! The files of a SQLite database: whether they are still those that were opened, and whether their volume has room.

use std::path::{Path, PathBuf};

use crate::error::StorageFault;

/// The least free space, in bytes, with which a volume does not count as full.
#[cfg(target_os = "linux")]
const LEAST_FREE: u64 = 64 * 1024;

/// The database file and its write-ahead log, as they were opened.
#[derive(Debug)]
pub(super) struct Files {
    database: OpenFile,
    log: OpenFile,
}

/// A file that is open, by its path and by its identity.
#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    id: FileId,
}

/// Device and inode.
type FileId = (u64, u64);

impl Files {
    /// The files of the database at this path, which is open and has a write-ahead log. `None` if it has no such files.
    pub(super) fn of(database: &Path) -> Option<Self> {
        // SQLite follows symbolic links, and has the log beside the file itself.
        let path = std::fs::canonicalize(database).ok()?;
        Some(Self {
            log: OpenFile::at(beside(&path, "-wal"))?,
            database: OpenFile::at(path)?,
        })
    }

    /// Missing or replaced, if one of the files is not the one that is open. What is committed to an open file that was
    /// deleted or replaced is gone with the process.
    pub(super) fn fault(&self) -> Option<StorageFault> {
        self.database.fault().or_else(|| self.log.fault())
    }

    /// Whether the volume of the database has no room left for us.
    #[cfg(target_os = "linux")]
    pub(super) fn volume_is_full(&self) -> bool {
        let Ok(volume) = rustix::fs::statvfs(&self.database.path) else {
            return false;
        };
        // Blocks that are reserved for root count for root.
        let blocks = if rustix::process::geteuid().is_root() {
            volume.f_bfree
        } else {
            volume.f_bavail
        };
        blocks.saturating_mul(volume.f_frsize) < LEAST_FREE
    }

    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unused_self, reason = "only Linux is asked")]
    pub(super) fn volume_is_full(&self) -> bool {
        false
    }

    /// Renames the write-ahead log of a database file that was replaced, if it still lies at its path: SQLite would take
    /// it for that of the new file, and apply it.
    pub(super) fn set_log_aside(&self) {
        if self.database.fault().is_none() || self.log.fault().is_some() {
            return;
        }
        for path in [self.log.path.clone(), beside(&self.database.path, "-shm")] {
            let renamed = std::fs::rename(&path, beside(&path, ".replaced"));
            let path = path.display();
            match renamed {
                Ok(()) => tracing::warn!(%path, "the log of the replaced database is set aside"),
                Err(error) => {
                    tracing::warn!(%path, %error, "the log of the replaced database cannot be set aside");
                }
            }
        }
    }
}

impl OpenFile {
    fn at(path: PathBuf) -> Option<Self> {
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

fn beside(path: &Path, suffix: &str) -> PathBuf {
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
