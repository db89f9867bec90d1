//! File permissions of a SQLite database: no access for other users of the host.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Permission bits of users that are neither owner nor group members.
const OTHER_USERS: u32 = 0o007;

/// Creates the database folder with access for its owner only. An existing folder keeps its mode;
/// access for every user is logged as a warning.
pub(crate) fn create_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let shown = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mode = fs::metadata(shown)?.permissions().mode() & 0o777;
    if mode & OTHER_USERS != 0 {
        tracing::warn!(
            "the folder of the database, {}, is open to every user of the host (mode {mode:03o}): it should have mode 700",
            shown.display()
        );
    }
    Ok(())
}

/// Removes access of other users from the database, its write-ahead log and its lock. Older
/// versions left these files readable.
pub(crate) fn restrict_files(database: &Path) {
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        let path = PathBuf::from(path);
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if metadata.permissions().mode() & OTHER_USERS == 0 {
            continue;
        }
        // A file of another user cannot be changed. The database may still be usable, so the
        // failure is only logged.
        if let Err(error) = fs::set_permissions(&path, Permissions::from_mode(0o600)) {
            tracing::warn!(%error, "{} can be read by every user of the host", path.display());
        }
    }
}
