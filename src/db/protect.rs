//! Keeps the files of a SQLite database from other users of the host.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The permissions of every user who is neither the owner nor in the group.
const OTHERS: u32 = 0o007;

/// Makes the folder of the database, for its owner only. One that exists stays as it is, with a warning if every user can
/// look into it.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let shown = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let mode = fs::metadata(shown)?.permissions().mode() & 0o777;
    if mode & OTHERS != 0 {
        tracing::warn!(
            "the folder of the database, {}, is open to every user of the host (mode {mode:03o}): it should have mode 700",
            shown.display()
        );
    }
    Ok(())
}

/// Takes the database, its write-ahead log and its lock from other users, where an older version left them readable.
pub(super) fn files(database: &Path) {
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        let path = PathBuf::from(path);
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if metadata.permissions().mode() & OTHERS == 0 {
            continue;
        }
        // A file of another user cannot be changed, and need not be: the database may still be used.
        if let Err(error) = fs::set_permissions(&path, Permissions::from_mode(0o600)) {
            tracing::warn!(%error, "{} can be read by every user of the host", path.display());
        }
    }
}
