//! Whether the database can be written: checked with every commit, and by a probe when nothing else writes.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sea_orm::{ConnectionTrait, DbBackend};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::Db;
use crate::error::{Error, Result, StorageFault};

/// How often the files are looked at, and a failing database is probed.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long nothing may have been committed before a probe writes.
const IDLE: Duration = Duration::from_secs(3);

/// How long a probe may take before the database counts as not answering. A long transaction of another writer is no
/// fault, so this is longer than any of them should be.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait at most before a corrupt database is checked again: a check reads all of it.
const LONGEST_CHECK_PAUSE: Duration = Duration::from_mins(5);

/// The least free space, in bytes, with which a volume does not count as full.
#[cfg(target_os = "linux")]
const LEAST_FREE: u64 = 64 * 1024;

/// What is known of the storage of one database. Clones share it.
#[derive(Debug, Clone)]
pub struct Storage(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The files of a SQLite database; none on PostgreSQL.
    files: Option<Files>,
    /// Why nothing can be written.
    fault: watch::Sender<Option<StorageFault>>,
    /// The fault of the newest write that failed, for the monitor.
    reported: Mutex<Option<StorageFault>>,
    has_report: Notify,
    committed_at: Mutex<Instant>,
    /// Whether the state of the writing connection is unknown, so that it must be closed.
    is_in_doubt: AtomicBool,
}

/// The files of a SQLite database, and which ones they were when it was opened.
#[derive(Debug)]
struct Files {
    database: PathBuf,
    log: PathBuf,
    database_id: FileId,
    /// The write-ahead log. It is made anew when every connection was closed.
    log_id: Mutex<Option<FileId>>,
}

/// Device and inode.
type FileId = (u64, u64);

impl Storage {
    /// The storage of a database on a server of its own.
    pub(super) fn of_server() -> Self {
        Self::new(None)
    }

    /// The storage of the SQLite database in this file, which has been opened.
    pub(super) fn of_file(database: &Path) -> Self {
        let files = file_id(database).map(|database_id| {
            let mut log = database.as_os_str().to_owned();
            log.push("-wal");
            Files {
                database: database.to_path_buf(),
                log: log.into(),
                database_id,
                log_id: Mutex::default(),
            }
        });
        Self::new(files)
    }

    fn new(files: Option<Files>) -> Self {
        Self(Arc::new(Shared {
            files,
            fault: watch::Sender::new(None),
            reported: Mutex::default(),
            has_report: Notify::new(),
            committed_at: Mutex::new(Instant::now()),
            is_in_doubt: AtomicBool::new(false),
        }))
    }

    /// Why nothing can be written at present.
    pub fn fault(&self) -> Option<StorageFault> {
        *self.0.fault.borrow()
    }

    /// Receives every change of [`Self::fault`].
    pub fn faults(&self) -> watch::Receiver<Option<StorageFault>> {
        self.0.fault.subscribe()
    }

    /// Refuses if the files at the paths are not those that were opened: what is committed to an open file that was
    /// deleted or replaced is gone with the process.
    pub(super) fn check_files(&self) -> Result<()> {
        let fault = self.0.files.as_ref().and_then(Files::fault);
        fault.map_or(Ok(()), |fault| Err(Error::StorageFailing(fault)))
    }

    /// Notes a transaction that was committed.
    pub(super) fn committed(&self) {
        *self
            .0
            .committed_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Notes a write that failed. The monitor decides what follows from it.
    pub(super) fn failed(&self, error: &Error) {
        if let Some(fault) = error.storage_fault() {
            *self
                .0
                .reported
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(fault);
            self.0.has_report.notify_one();
        }
    }

    /// Has the writing connection closed before anything else is written.
    pub(super) fn doubt_writer(&self) {
        self.0.is_in_doubt.store(true, Ordering::Release);
    }

    /// Whether the writing connection has to be closed; says so once.
    pub(super) fn take_doubt(&self) -> bool {
        self.0.is_in_doubt.swap(false, Ordering::AcqRel)
    }

    /// Notes that the writing connection is a new one.
    pub(super) fn writer_opened(&self) {
        self.0.is_in_doubt.store(false, Ordering::Release);
        if let Some(files) = &self.0.files {
            *files.log_id.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    fn set(&self, fault: Option<StorageFault>) {
        let is_new = self
            .0
            .fault
            .send_if_modified(|now| std::mem::replace(now, fault) != fault);
        match fault {
            Some(fault) if is_new => tracing::error!(%fault, "the database cannot be written"),
            None if is_new => tracing::info!("the database can be written again"),
            _ => {}
        }
    }

    fn take_report(&self) -> Option<StorageFault> {
        self.0
            .reported
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn is_idle(&self) -> bool {
        self.0
            .committed_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
            >= IDLE
    }

    /// Watches whether the database can be written, until shutdown. Ends early if the database file was replaced by
    /// another one, which only a new process can open.
    pub async fn monitor(&self, db: Db, shutdown: CancellationToken) -> Option<StorageFault> {
        let monitoring = async {
            let mut checks = Checks::default();
            loop {
                let reported = self.take_report();
                // A write that has failed says more than a probe that may succeed a moment later.
                let fault = match reported {
                    Some(fault) => Some(fault),
                    None => self.look(&db, &mut checks).await,
                };
                self.set(fault);
                if fault == Some(StorageFault::Replaced) {
                    if let Some(files) = &self.0.files {
                        files.set_log_aside();
                    }
                    return StorageFault::Replaced;
                }
                // After a fault the next look is a second away: health must not flap with every write.
                let report = async {
                    if fault.is_some() {
                        std::future::pending::<()>().await;
                    }
                    self.0.has_report.notified().await;
                };
                let _ = timeout(INTERVAL, report).await;
            }
        };
        shutdown.run_until_cancelled(monitoring).await
    }

    /// Looks what keeps the database from being written.
    async fn look(&self, db: &Db, checks: &mut Checks) -> Option<StorageFault> {
        if let Some(fault) = self.0.files.as_ref().and_then(Files::fault) {
            return Some(fault);
        }
        if self
            .0
            .files
            .as_ref()
            .is_some_and(|files| is_full(&files.database))
        {
            return Some(StorageFault::Full);
        }
        let before = self.fault();
        if before.is_none() && !self.is_idle() {
            return None;
        }
        if before == Some(StorageFault::Corrupt) && !checks.is_sound(db).await {
            return before;
        }
        let is_full = before == Some(StorageFault::Full);
        match timeout(PROBE_TIMEOUT, probe(db, is_full)).await {
            Ok(Ok(())) => None,
            // A database that cannot be reached is a matter of its own.
            Ok(Err(error)) => error.storage_fault().or(before),
            Err(_) => Some(StorageFault::NotAnswering),
        }
    }
}

impl Files {
    fn fault(&self) -> Option<StorageFault> {
        match file_id(&self.database) {
            None => return Some(StorageFault::Missing),
            Some(id) if id != self.database_id => return Some(StorageFault::Replaced),
            Some(_) => {}
        }
        let mut known = self.log_id.lock().unwrap_or_else(PoisonError::into_inner);
        match (file_id(&self.log), *known) {
            (None, Some(_)) => Some(StorageFault::Missing),
            (Some(id), Some(known)) if id != known => Some(StorageFault::Replaced),
            (found, _) => {
                *known = found;
                None
            }
        }
    }
}

impl Files {
    /// Renames the write-ahead log of a database file that was replaced, if it still lies at its path: SQLite would take
    /// it for that of the new file, and apply it.
    fn set_log_aside(&self) {
        let known = *self.log_id.lock().unwrap_or_else(PoisonError::into_inner);
        if file_id(&self.database) == Some(self.database_id)
            || known.is_none()
            || file_id(&self.log) != known
        {
            return;
        }
        let mut index = self.database.as_os_str().to_owned();
        index.push("-shm");
        for path in [self.log.clone(), PathBuf::from(index)] {
            let mut aside = path.as_os_str().to_owned();
            aside.push(".replaced");
            let renamed = std::fs::rename(&path, &aside);
            let path = path.display();
            if let Err(error) = renamed {
                tracing::warn!(%path, %error, "the log of the replaced database cannot be set aside");
            } else {
                tracing::warn!(%path, "the log of the replaced database is set aside");
            }
        }
    }
}

/// Checks of a corrupt database, more and more seldom.
struct Checks {
    next: Instant,
    pause: Duration,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            next: Instant::now(),
            pause: INTERVAL,
        }
    }
}

impl Checks {
    /// Whether a check, if one is due, finds the database sound.
    async fn is_sound(&mut self, db: &Db) -> bool {
        if Instant::now() < self.next {
            return false;
        }
        let is_sound = db.backend() != DbBackend::Sqlite || is_intact(db).await;
        self.pause = if is_sound {
            INTERVAL
        } else {
            (self.pause * 2).min(LONGEST_CHECK_PAUSE)
        };
        self.next = Instant::now() + self.pause;
        is_sound
    }
}

async fn is_intact(db: &Db) -> bool {
    let check = sea_orm::Statement::from_string(DbBackend::Sqlite, "PRAGMA quick_check(1)");
    let row = db.reader().query_one_raw(check).await;
    let text = row
        .ok()
        .flatten()
        .and_then(|row| row.try_get_by_index::<String>(0).ok());
    text.is_some_and(|text| text == "ok")
}

/// Writes something that changes nothing. Where the volume was full, room is asked for as well: a small write may
/// find its place in what is allocated already.
async fn probe(db: &Db, was_full: bool) -> Result<()> {
    db.write_quietly(async |tx| {
        if db.backend() == DbBackend::Sqlite {
            // The field is ours to use, and a new value always writes a page.
            let number = chrono::Utc::now().timestamp() & 0x7FFF_FFFF;
            tx.execute_unprepared(&format!("PRAGMA user_version = {number}"))
                .await?;
            return Ok(());
        }
        tx.execute_unprepared(
            "UPDATE feed_state SET id = id WHERE ctid IN \
            (SELECT ctid FROM feed_state WHERE id = 1 FOR UPDATE SKIP LOCKED)",
        )
        .await?;
        if was_full {
            tx.execute_unprepared(
                "CREATE TEMPORARY TABLE watchpost_probe ON COMMIT DROP AS \
                SELECT md5(number::text) AS filler FROM generate_series(1, 16384) AS number",
            )
            .await?;
        }
        Ok(())
    })
    .await
}

#[cfg(unix)]
fn file_id(path: &Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Whether the volume of this file has no room left for us.
#[cfg(target_os = "linux")]
fn is_full(path: &Path) -> bool {
    let Ok(volume) = rustix::fs::statvfs(path) else {
        return false;
    };
    // What is reserved for root counts for root.
    let blocks = if rustix::process::geteuid().is_root() {
        volume.f_bfree
    } else {
        volume.f_bavail
    };
    blocks.saturating_mul(volume.f_frsize) < LEAST_FREE
}

#[cfg(not(target_os = "linux"))]
fn is_full(_: &Path) -> bool {
    false
}
