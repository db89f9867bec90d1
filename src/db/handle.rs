//! Handle of the database: connections, reads, scans and state.

use std::sync::Arc;

use parking_lot::Mutex;
use sea_orm::{
    ConnAcquireErr, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr,
    sqlx::{ConnectOptions as _, Connection, SqliteConnection},
};
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    time::timeout,
};

use super::{
    reader::{Reachability, Reader},
    renewal::Renewal,
    scans::{Scan, ScanCounts, Scans},
    sqlite::lock::FileLock,
    storage::Storage,
    timeouts::ACQUIRE_TIMEOUT,
};
use crate::error::{self, Error, Result};

/// Handle of the database. Clones share the connections.
#[derive(Debug, Clone)]
pub struct Db(pub(super) Arc<Inner>);

/// State shared by all clones of a handle.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) backend: DbBackend,
    /// Connections for writes: a single connection on SQLite, which allows one writer; the pool of
    /// `reader` on PostgreSQL.
    pub(super) writer: DatabaseConnection,
    pub(super) reader: Reader,
    /// Connections to PostgreSQL whose planner is restricted to indexes, see [`Db::by_key`].
    pub(super) by_key: Option<DatabaseConnection>,
    pub(super) scans: Scans,
    pub(super) reachability: Reachability,
    /// Idle connection to a SQLite file, open until the end. SQLite deletes the write-ahead log
    /// with the last connection, and the pools may close all of theirs after a fault.
    pub(super) wal_connection: AsyncMutex<Option<SqliteConnection>>,
    /// Lock of a SQLite file for exclusive use by this process; absent without exclusive use.
    pub(super) lock: Mutex<Option<FileLock>>,
    /// Held by a SQLite write transaction, so that a failed commit is handled before the next
    /// transaction begins.
    pub(super) writing: AsyncMutex<()>,
    pub(super) storage: Storage,
    pub(super) renewal: Renewal,
    pub(super) committed: Arc<Notify>,
    pub(super) announce: Arc<Notify>,
}

impl Inner {
    pub(super) fn new(
        backend: DbBackend,
        writer: DatabaseConnection,
        reader: DatabaseConnection,
        scans: Scans,
        storage: Storage,
        reachability: Reachability,
    ) -> Self {
        Self {
            backend,
            writer,
            reader: Reader::new(reader, reachability.clone()),
            by_key: None,
            scans,
            reachability,
            wal_connection: AsyncMutex::default(),
            lock: Mutex::default(),
            writing: AsyncMutex::default(),
            storage,
            renewal: Renewal::default(),
            committed: Arc::default(),
            announce: Arc::default(),
        }
    }
}

impl Db {
    /// Returns the kind of the database.
    pub fn backend(&self) -> DbBackend {
        self.0.backend
    }

    /// Returns a handle for frequent lookups of few rows by key.
    ///
    /// On PostgreSQL the planner of these connections is restricted to indexes and their order. A
    /// plan cached while a table was small would otherwise scan the whole table later.
    #[must_use]
    pub fn by_key(&self) -> Self {
        let Some(by_key) = &self.0.by_key else {
            return self.clone();
        };
        let (scans, storage) = (self.0.scans.clone(), self.0.storage.clone());
        let (writer, reader, reachability) = (by_key.clone(), by_key.clone(), self.0.reachability.clone());
        let mut db = Inner::new(self.0.backend, writer, reader, scans, storage, reachability);
        db.renewal = self.0.renewal.clone();
        db.committed = self.0.committed.clone();
        db.announce = self.0.announce.clone();
        Self(Arc::new(db))
    }

    /// Returns connections for short reads outside of a transaction: by key, or a page by an index.
    /// See [`Db::scan`] for reads of many rows.
    pub fn reader(&self) -> &Reader {
        &self.0.reader
    }

    /// Begins a read-only transaction with a consistent snapshot.
    pub async fn snapshot(&self) -> Result<DatabaseTransaction> {
        self.0.reader.snapshot().await
    }

    /// Marks the open PostgreSQL connections to be closed before reuse. Their cached types and
    /// plans may belong to another database.
    pub(crate) fn renew_connections(&self) {
        self.0.renewal.renew();
    }

    /// Returns the state of the storage, including the reason if the database cannot be written.
    pub fn storage(&self) -> &Storage {
        &self.0.storage
    }

    /// Returns the error for a request without an answer in time: the known storage fault, a busy
    /// database, or an unreachable database.
    pub async fn timeout_error(&self) -> Error {
        if let Some(fault) = self.0.storage.fault() {
            return Error::Storage(fault);
        }
        if self.0.reachability.is_reachable().await { Error::DatabaseBusy } else { Error::DatabaseAway }
    }

    /// Checks that the database answers a query.
    pub async fn ping(&self) -> Result<(), DbErr> {
        let alive = self.0.reader.execute_unprepared("SELECT 1");
        if let Ok(alive) = timeout(ACQUIRE_TIMEOUT, alive).await {
            return alive.map(|_| ());
        }
        let error = DbErr::ConnectionAcquire(ConnAcquireErr::Timeout);
        Err(self.0.reachability.classify(error).await)
    }

    /// Attempts to connect to PostgreSQL and returns the problem, because a pool only reports a
    /// timeout. `None` if the attempt succeeds, and on SQLite.
    pub async fn connect_problem(&self) -> Option<String> {
        if self.0.backend != DbBackend::Postgres {
            return None;
        }
        let options = self.0.reader.get_postgres_connection_pool().connect_options();
        match timeout(ACQUIRE_TIMEOUT, options.connect()).await {
            Ok(Ok(connection)) => {
                // A failed close of the test connection has no effect.
                let _ = connection.close().await;
                None
            }
            Ok(Err(error)) => Some(error::Chain(&error).to_string()),
            Err(_) => Some(format!("no answer within {ACQUIRE_TIMEOUT:?}")),
        }
    }

    /// Closes all connections, then releases the lock of a SQLite file.
    pub async fn close(self) {
        // Scans close first, because their running queries are cancelled over the other
        // connections.
        let scans = self.0.scans.pools();
        let others = [&self.0.writer, self.0.reader.pool()];
        for pool in scans.chain(others).chain(&self.0.by_key) {
            if let Err(error) = pool.close_by_ref().await {
                tracing::debug!(%error, "closing the database failed");
            }
        }
        if let Some(wal_connection) = self.0.wal_connection.lock().await.take()
            && let Err(error) = wal_connection.close().await
        {
            tracing::debug!(%error, "closing the database failed");
        }
        drop(self.0.lock.lock().take());
    }

    /// Waits for a scan slot, in order of arrival. Must not be called while holding a slot.
    ///
    /// Fails with `ScanTimeout` after 30 seconds or at the call's deadline, whichever is earlier.
    /// Fails at once with `ScanQueueFull` if 200 calls wait.
    pub async fn scan(&self) -> Result<Scan> {
        self.0.scans.begin().await
    }

    /// Waits for a scan slot if `is_scan` is true; otherwise uses the connections for short reads.
    pub async fn scan_if(&self, is_scan: bool) -> Result<Scan> {
        if is_scan {
            return self.scan().await;
        }
        Ok(Scan::without_slot(self.0.reader.clone()))
    }

    /// Returns the scan statistics of this process.
    pub fn scan_counts(&self) -> ScanCounts {
        self.0.scans.counts()
    }
}
