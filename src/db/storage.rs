//! Storage of the database: detects faults that prevent writes. Every commit is checked, and a
//! probe writes while the database is idle.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Db, files::Files};
use crate::error::{Error, Result, StorageFault};

/// Pause between two checks of the files, and between two probes of a faulty database.
const INTERVAL: Duration = Duration::from_secs(1);

/// Time without a commit after which a probe writes.
const IDLE: Duration = Duration::from_secs(3);

/// Maximum duration of a probe, longer than any transaction: a long transaction of another writer
/// is not a fault.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum pause between two integrity checks of a corrupt database, because a check reads the
/// whole file.
const LONGEST_CHECK_PAUSE: Duration = Duration::from_mins(5);

/// Storage state of a database. Clones share the state.
#[derive(Debug, Clone)]
pub struct Storage(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Files of a SQLite database; absent on PostgreSQL.
    files: Option<Files>,
    /// Fault that prevents writes; absent while the database can be written.
    fault: watch::Sender<Option<StorageFault>>,
    /// Fault of the newest failed write, to be evaluated by the monitor.
    reported: Mutex<Option<StorageFault>>,
    has_report: Notify,
    committed_at: Mutex<Instant>,
    /// True while the state of the writing connection is unknown; the connection must then be
    /// closed.
    writer_in_doubt: AtomicBool,
}

impl Storage {
    /// Creates the state for a database server.
    pub(super) fn of_server() -> Self {
        Self::new(None)
    }

    /// Creates the state for an open SQLite database file.
    pub(super) fn of_file(database: &Path) -> Self {
        Self::new(Files::of(database))
    }

    fn new(files: Option<Files>) -> Self {
        Self(Arc::new(Shared {
            files,
            fault: watch::Sender::new(None),
            reported: Mutex::default(),
            has_report: Notify::new(),
            committed_at: Mutex::new(Instant::now()),
            writer_in_doubt: AtomicBool::new(false),
        }))
    }

    /// Returns the fault that prevents writes. `None` if the database can be written.
    pub fn fault(&self) -> Option<StorageFault> {
        *self.0.fault.borrow()
    }

    /// Waits until the monitor has detected a different file at the path of the database.
    pub async fn replaced(&self) {
        let mut faults = self.0.fault.subscribe();
        // The sender lives as long as `self`.
        let _ = faults
            .wait_for(|fault| *fault == Some(StorageFault::Replaced))
            .await;
    }

    /// Returns an error if the files at the paths are not the open files.
    pub(super) fn check_files(&self) -> Result<()> {
        let fault = self.0.files.as_ref().and_then(Files::fault);
        fault.map_or(Ok(()), |fault| Err(Error::Storage(fault)))
    }

    /// Records a successful commit.
    pub(super) fn committed(&self) {
        *self.0.committed_at.lock() = Instant::now();
    }

    /// Records a failed write for the monitor.
    pub(super) fn failed(&self, error: &Error) {
        if let Some(fault) = error.storage_fault() {
            *self.0.reported.lock() = Some(fault);
            self.0.has_report.notify_one();
        }
    }

    /// Marks the writing connection to be closed before the next write.
    pub(super) fn doubt_writer(&self) {
        self.0.writer_in_doubt.store(true, Ordering::Release);
    }

    /// Returns true if the writing connection must be closed, and resets the mark.
    pub(super) fn take_doubt(&self) -> bool {
        self.0.writer_in_doubt.swap(false, Ordering::AcqRel)
    }

    /// Records that the writing connection was newly opened.
    pub(super) fn writer_opened(&self) {
        self.0.writer_in_doubt.store(false, Ordering::Release);
    }

    /// Monitors the storage until shutdown, and calls `report` with every change of the fault.
    /// Returns early if the database file was replaced, which requires a new process.
    pub async fn monitor(
        &self,
        db: &Db,
        tell: impl Fn(Option<StorageFault>),
        shutdown: CancellationToken,
    ) {
        let monitoring = async {
            let mut checks = Checks::default();
            loop {
                // A failed write is stronger evidence than a probe that may succeed a moment later.
                let fault = match self.take_report() {
                    Some(fault) => Some(fault),
                    None => self.look(db, &mut checks).await,
                };
                if fault == Some(StorageFault::Replaced)
                    && let Some(files) = &self.0.files
                {
                    files.set_log_aside();
                }
                self.set(fault, &tell);
                if fault == Some(StorageFault::Replaced) {
                    return;
                }
                // After a fault the next check is a second away, so that health does not flap with
                // every write.
                let report = async {
                    if fault.is_some() {
                        std::future::pending::<()>().await;
                    }
                    self.0.has_report.notified().await;
                };
                let _ = timeout(INTERVAL, report).await;
            }
        };
        shutdown.run_until_cancelled(monitoring).await;
    }

    fn set(&self, fault: Option<StorageFault>, tell: impl Fn(Option<StorageFault>)) {
        let is_new = self
            .0
            .fault
            .send_if_modified(|now| std::mem::replace(now, fault) != fault);
        if !is_new {
            return;
        }
        tell(fault);
        if let Some(fault) = fault {
            tracing::error!(%fault, "the database cannot be written");
        } else {
            tracing::info!("the database can be written again");
        }
    }

    fn take_report(&self) -> Option<StorageFault> {
        self.0.reported.lock().take()
    }

    fn is_idle(&self) -> bool {
        let committed_at = self.0.committed_at.lock();
        committed_at.elapsed() >= IDLE
    }

    /// Checks for a fault that prevents writes.
    async fn look(&self, db: &Db, checks: &mut Checks) -> Option<StorageFault> {
        if let Some(files) = &self.0.files {
            if let Some(fault) = files.fault() {
                return Some(fault);
            }
            if files.volume_is_full() {
                return Some(StorageFault::Full);
            }
        }
        let before = self.fault();
        if before.is_none() && !self.is_idle() {
            return None;
        }
        if before == Some(StorageFault::Corrupt) && !checks.find_it_sound(db).await {
            return before;
        }
        let was_full = before == Some(StorageFault::Full);
        match timeout(PROBE_TIMEOUT, probe(db, was_full)).await {
            Ok(Ok(())) => None,
            // An unreachable database is reported separately.
            Ok(Err(error)) => error.storage_fault().or(before),
            Err(_) => Some(StorageFault::NotAnswering),
        }
    }
}

/// Integrity checks of a corrupt database, with increasing pauses.
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
    /// Returns true if a check is due and finds the database intact.
    async fn find_it_sound(&mut self, db: &Db) -> bool {
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
    let check = Statement::from_string(DbBackend::Sqlite, "PRAGMA quick_check(1)");
    let row = db.reader().query_one_raw(check).await.ok().flatten();
    row.and_then(|row| row.try_get_by_index::<String>(0).ok())
        .is_some_and(|text| text == "ok")
}

/// Runs a write without effect. After a full volume the probe also allocates space, because a small
/// write may fit into allocated pages.
async fn probe(db: &Db, was_full: bool) -> Result<()> {
    db.write_quietly(async |tx| {
        if db.backend() == DbBackend::Sqlite {
            // The application owns this field, and a new value always writes a page.
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
