//! The file with the keys that encrypt secrets: one key per line in base64, the current one first. A key that is not to
//! encrypt yet begins with `next:`.
//!
//! The file is replaced as a whole, so that whoever is killed leaves the old keys or the new ones.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use ring::{
    aead::{CHACHA20_POLY1305, LessSafeKey, UnboundKey},
    digest,
    rand::{SecureRandom, SystemRandom},
};
use uuid::Uuid;

/// Length of a key, in bytes.
const KEY_LENGTH: usize = 32;

/// Length of the id of a key, in bytes.
pub(crate) const ID_LENGTH: usize = 4;

/// Maximum size of the key file, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Prefix of the line of a staged key.
const STAGED_PREFIX: &str = "next:";

/// Key with its id and cipher.
pub(crate) struct Key {
    /// First bytes of the digest of the key. Ciphertexts name their key by the id.
    pub id: [u8; ID_LENGTH],
    pub cipher: LessSafeKey,
    /// True if the key must not encrypt yet.
    pub is_staged: bool,
    bytes: [u8; KEY_LENGTH],
}

/// Keys of a file, at least one.
#[derive(Clone)]
pub(crate) struct Keys(Arc<Vec<Key>>);

/// Identity of the content of a file, available without reading the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    changed: (i64, i64),
    size: u64,
}

/// Error of reading the key file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("the key file {} is missing", .0.display())]
    Missing(PathBuf),
    #[error(
        "the key file {} can be read by every user of the host (mode {mode:03o}): it must have mode 600",
        .path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the key file {} must hold {KEY_LENGTH} bytes in base64 on each line", .0.display())]
    Malformed(PathBuf),
    #[error("the key file {}: {problem}", .path.display())]
    Failed { path: PathBuf, problem: String },
}

impl Key {
    fn new(bytes: [u8; KEY_LENGTH]) -> Option<Self> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).ok()?;
        let digest = digest::digest(&digest::SHA256, &bytes);
        Some(Self { id: *digest.as_ref().first_chunk()?, cipher: LessSafeKey::new(key), is_staged: false, bytes })
    }

    /// Copy of the key, staged or not.
    fn copy(&self, is_staged: bool) -> Option<Self> {
        Some(Self { is_staged, ..Self::new(self.bytes)? })
    }

    fn random() -> io::Result<Self> {
        let mut bytes = [0; KEY_LENGTH];
        let filled = SystemRandom::new().fill(&mut bytes);
        let key = filled.ok().and_then(|()| Self::new(bytes));
        key.ok_or_else(|| io::Error::other("the system has no random numbers"))
    }
}

impl Keys {
    /// Key for encryption.
    pub(crate) fn current(&self) -> &Key {
        &self.0[0]
    }

    /// Key by id.
    pub(crate) fn find(&self, id: &[u8]) -> Option<&Key> {
        self.0.iter().find(|key| key.id == id)
    }

    /// All keys, current key first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }

    fn text(&self) -> String {
        let line = |key: &Key| {
            let prefix = if key.is_staged { STAGED_PREFIX } else { "" };
            format!("{prefix}{}\n", BASE64_STANDARD.encode(key.bytes))
        };
        self.iter().map(line).collect()
    }
}

/// Reads the stamp of a key file.
pub(crate) fn stamp(path: &Path) -> Result<Stamp, KeyError> {
    let metadata = fs::metadata(path).map_err(|error| read_error(path, &error))?;
    Ok(Stamp { inode: metadata.ino(), changed: (metadata.ctime(), metadata.ctime_nsec()), size: metadata.len() })
}

/// Reads the keys. A file readable by every user of the host is refused.
pub(crate) fn read(path: &Path) -> Result<Keys, KeyError> {
    let failed = |error: io::Error| read_error(path, &error);
    let metadata = fs::metadata(path).map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o007 != 0 {
        let path = path.to_path_buf();
        return Err(KeyError::Exposed { path, mode });
    }
    let malformed = || KeyError::Malformed(path.to_path_buf());
    if metadata.len() > MAX_FILE_BYTES {
        return Err(malformed());
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    let key = |line: &str| {
        let text = line.strip_prefix(STAGED_PREFIX);
        let bytes = BASE64_STANDARD.decode(text.unwrap_or(line).trim()).ok()?;
        Key::new(bytes.try_into().ok()?)?.copy(text.is_some())
    };
    let keys: Option<Vec<_>> = text.lines().map(key).collect();
    let is_good = |keys: &Vec<Key>| keys.first().is_some_and(|key| !key.is_staged);
    let keys = keys.filter(is_good).ok_or_else(malformed)?;
    Ok(Keys(Arc::new(keys)))
}

/// Creates a file with a random key, unless the file exists. Concurrent processes end up with the same file.
pub(crate) fn create(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let keys = Keys(Arc::new(vec![Key::random()?]));
    let temporary = write_temporary(path, &keys)?;
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => sync_folder(path)?,
    }
    tracing::info!("created the key file for secrets: {}", path.display());
    Ok(())
}

/// Adds a staged key to the file, unless a staged key exists.
pub(crate) fn stage(path: &Path, keys: &Keys) -> io::Result<()> {
    if keys.iter().any(|key| key.is_staged) {
        return Ok(());
    }
    let staged = Key::random()?.copy(true);
    let copies = keys.iter().filter_map(|key| key.copy(false));
    replace(path, &Keys(Arc::new(copies.chain(staged).collect())))
}

/// Makes the staged key, or else a new key, the current key of the file.
pub(crate) fn advance(path: &Path, keys: &Keys) -> io::Result<()> {
    let staged = keys.iter().find(|key| key.is_staged);
    let first = match staged.and_then(|key| key.copy(false)) {
        Some(key) => key,
        None => Key::random()?,
    };
    let others = keys.iter().filter(|key| !key.is_staged);
    let copies = others.filter_map(|key| key.copy(false));
    let advanced = [first].into_iter().chain(copies).collect();
    replace(path, &Keys(Arc::new(advanced)))
}

/// Drops the keys not needed from the file. The current key and a staged key are always retained.
pub(crate) fn retain(path: &Path, keys: &Keys, is_needed: impl Fn(&[u8; ID_LENGTH]) -> bool) -> io::Result<()> {
    let current = keys.current().id;
    let retained = keys.iter().filter(|key| key.id == current || key.is_staged || is_needed(&key.id));
    let copies = retained.filter_map(|key| key.copy(key.is_staged));
    replace(path, &Keys(Arc::new(copies.collect())))
}

/// Replaces the file by a file with a new key, whatever the content.
pub(crate) fn replace_all(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    replace(path, &Keys(Arc::new(vec![Key::random()?])))
}

fn replace(path: &Path, keys: &Keys) -> io::Result<()> {
    fs::rename(write_temporary(path, keys)?, path)?;
    sync_folder(path)
}

/// Writes keys to a temporary file next to the key file, synced to disk.
fn write_temporary(path: &Path, keys: &Keys) -> io::Result<PathBuf> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", Uuid::now_v7()));
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(keys.text().as_bytes())?;
    file.sync_all()?;
    Ok(temporary.into())
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => fs::File::open(folder)?.sync_all(),
        _ => fs::File::open(".")?.sync_all(),
    }
}

fn read_error(path: &Path, error: &io::Error) -> KeyError {
    let path = path.to_path_buf();
    if error.kind() == io::ErrorKind::NotFound {
        return KeyError::Missing(path);
    }
    let problem = error.to_string();
    KeyError::Failed { path, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(keys: &Keys) -> Vec<[u8; ID_LENGTH]> {
        keys.iter().map(|key| key.id).collect()
    }

    #[test]
    fn keys_are_made_added_and_removed_in_a_file_of_their_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/secret.key");
        assert_eq!(read(&path).err(), Some(KeyError::Missing(path.clone())));
        create(&path).unwrap();
        create(&path).unwrap();
        let first = read(&path).unwrap();
        stage(&path, &first).unwrap();
        let staged = read(&path).unwrap();
        assert_eq!(ids(&staged)[..1], ids(&first)[..]);
        stage(&path, &staged).unwrap();
        assert_eq!(ids(&read(&path).unwrap()), ids(&staged));
        advance(&path, &staged).unwrap();
        let both = read(&path).unwrap();
        assert_eq!(both.current().id, ids(&staged)[1]);
        assert_eq!(ids(&both)[1..], ids(&first)[..]);
        assert!(both.find(&first.current().id).is_some());
        retain(&path, &both, |_| true).unwrap();
        assert_eq!(ids(&read(&path).unwrap()), ids(&both));
        retain(&path, &both, |_| false).unwrap();
        assert_eq!(ids(&read(&path).unwrap()), ids(&both)[..1]);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        replace_all(&path).unwrap();
        assert!(!ids(&both).contains(&read(&path).unwrap().current().id));
    }

    #[test]
    fn a_file_that_is_no_key_or_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret.key");
        create(&path).unwrap();
        for (mode, is_good) in [(0o600, true), (0o400, true), (0o640, true), (0o604, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let read = read(&path);
            assert_eq!(read.is_ok(), is_good, "{mode:o}");
            if let Err(error) = read {
                assert!(error.to_string().contains("mode 604"), "{error}");
            }
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for text in ["", "\n", "hunter2", "AQEB\n", "next:AQEB\n"] {
            fs::write(&path, text).unwrap();
            assert_eq!(read(&path).err(), Some(KeyError::Malformed(path.clone())));
        }
    }
}
