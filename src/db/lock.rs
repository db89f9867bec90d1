//! The lock of a SQLite database: one process at a time works on it.

use std::{
    fmt::Display,
    fs::{File, TryLockError},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use sea_orm::DbErr;

/// A lock that is held until it is dropped, or the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Locks the database in this file for what this process does with it. Fails if another process has it, and names
    /// that one.
    pub(super) fn take(database: &Path, purpose: &str) -> Result<Self, DbErr> {
        let path = lock_path(database);
        let failed = |problem: &dyn Display| {
            DbErr::Custom(format!("the lock file {}: {problem}", path.display()))
        };
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
                let mut holder = String::new();
                // The holder may be writing its name at this moment.
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process",
                    holder => holder,
                };
                return Err(DbErr::Custom(format!(
                    "the database {} is in use by {holder}",
                    database.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(failed(&error)),
        }
        let since = chrono::Utc::now().format("%Y-%m-%dT%H:%M:%SZ");
        let holder = format!(
            "process {} (watchpost {purpose}, since {since})\n",
            std::process::id()
        );
        // Whoever is refused reads it. The lock holds without it too, as on a full disk.
        let _ = file
            .set_len(0)
            .and_then(|()| file.write_all(holder.as_bytes()));
        Ok(Self { _file: file })
    }
}

/// The file that is locked: beside the database, wherever a symbolic link leads to it.
fn lock_path(database: &Path) -> PathBuf {
    let mut path = std::fs::canonicalize(database)
        .unwrap_or_else(|_| database.to_path_buf())
        .into_os_string();
    path.push(".lock");
    path.into()
}
