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
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::sqlite::files::Files;
use crate::error::{Error, Result, StorageFault};

mod monitor;

/// Time without a commit after which a probe writes.
const IDLE_BEFORE_PROBE: Duration = Duration::from_secs(3);

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
    failure_reported: Notify,
    committed_at: Mutex<Instant>,
    /// True while the state of the writing connection is unknown; the connection must then be
    /// closed.
    is_writer_suspect: AtomicBool,
}

impl Storage {
    /// Creates the state for a database server.
    pub(super) fn for_server() -> Self {
        Self::new(None)
    }

    /// Creates the state for an open SQLite database file.
    pub(super) fn for_file(database: &Path) -> Self {
        Self::new(Files::open(database))
    }

    fn new(files: Option<Files>) -> Self {
        Self(Arc::new(Shared {
            files,
            fault: watch::Sender::new(None),
            reported: Mutex::default(),
            failure_reported: Notify::new(),
            committed_at: Mutex::new(Instant::now()),
            is_writer_suspect: AtomicBool::new(false),
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
        let _ = faults.wait_for(|fault| *fault == Some(StorageFault::Replaced)).await;
    }

    /// Returns an error if the files at the paths are not the open files.
    pub(super) fn check_files(&self) -> Result<()> {
        let fault = self.0.files.as_ref().and_then(Files::fault);
        fault.map_or(Ok(()), |fault| Err(Error::Storage(fault)))
    }

    /// Records a successful commit.
    pub(super) fn note_commit(&self) {
        *self.0.committed_at.lock() = Instant::now();
    }

    /// Records a failed write for the monitor.
    pub(super) fn note_failure(&self, error: &Error) {
        if let Some(fault) = error.storage_fault() {
            *self.0.reported.lock() = Some(fault);
            self.0.failure_reported.notify_one();
        }
    }

    /// Marks the writing connection to be closed before the next write.
    pub(super) fn suspect_writer(&self) {
        self.0.is_writer_suspect.store(true, Ordering::Release);
    }

    /// Returns true if the writing connection must be closed, and resets the mark.
    pub(super) fn take_writer_suspicion(&self) -> bool {
        self.0.is_writer_suspect.swap(false, Ordering::AcqRel)
    }

    /// Records that the writing connection was newly opened.
    pub(super) fn writer_opened(&self) {
        self.0.is_writer_suspect.store(false, Ordering::Release);
    }

    fn set(&self, fault: Option<StorageFault>, report: impl Fn(Option<StorageFault>)) {
        let is_new = self.0.fault.send_if_modified(|current| std::mem::replace(current, fault) != fault);
        if !is_new {
            return;
        }
        report(fault);
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
        committed_at.elapsed() >= IDLE_BEFORE_PROBE
    }
}
