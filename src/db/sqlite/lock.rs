//! Lock of a SQLite database: one process at a time uses the file.

use std::{
    fmt::Display,
    fs::{File, TryLockError},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use sea_orm::DbErr;

/// Lock held until dropped, or until the process ends.
#[derive(Debug)]
pub(crate) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Locks the database file for this process and purpose. Fails if another process holds the
    /// lock, and names that process.
    pub(crate) fn acquire(database: &Path, purpose: &str) -> Result<Self, DbErr> {
        let path = lock_path(database);
        let failed = |problem: &dyn Display| DbErr::Custom(format!("the lock file {}: {problem}", path.display()));
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| failed(&error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // The owner may be writing its name at this moment.
                let _ = file.read_to_string(&mut owner);
                let owner = match owner.trim() {
                    "" => "another process",
                    owner => owner,
                };
                return Err(DbErr::Custom(format!("the database {} is in use by {owner}", database.display())));
            }
            Err(TryLockError::Error(error)) => return Err(failed(&error)),
        }
        let since = chrono::Utc::now().format("%Y-%m-%dT%H:%M:%SZ");
        let owner = format!("process {} (watchpost {purpose}, since {since})\n", std::process::id());
        // The name is informative. The lock holds without it, as on a full disk.
        let _ = file.set_len(0).and_then(|()| file.write_all(owner.as_bytes()));
        Ok(Self { _file: file })
    }
}

/// Returns the path of the lock file: beside the target of a symbolic link.
fn lock_path(database: &Path) -> PathBuf {
    let mut path = std::fs::canonicalize(database).unwrap_or_else(|_| database.to_path_buf()).into_os_string();
    path.push(".lock");
    path.into()
}
