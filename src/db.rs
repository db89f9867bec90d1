//! The database: settings, connections, reads (`db/reader.rs`, `db/scans.rs`) and writes
//! (`db/write.rs`).

use std::sync::Arc;

use parking_lot::Mutex;
use sea_orm::{
    ConnAcquireErr, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr,
    sqlx::{self, ConnectOptions as _, Connection, SqliteConnection},
};
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    time::timeout,
};

use self::{
    connect::ACQUIRE_TIMEOUT,
    lock::Lock,
    reader::{Life, Reader},
    renewal::Renewal,
    scans::Scans,
    storage::Storage,
};
use crate::error::{self, Error, Result};

pub mod bulk;
mod connect;
mod files;
mod lock;
mod migrate;
mod protect;
pub mod reader;
mod renewal;
pub mod row;
pub mod scans;
pub mod signals;
pub mod storage;
mod write;

pub use self::connect::BY_KEY;

/// Address and connection settings of a database.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address: `sqlite://…` or `postgres://…`.
    pub url: String,
    /// Maximum number of open connections to PostgreSQL.
    pub connections: u32,
    /// Durability of a commit on SQLite.
    pub sqlite_synchronous: Synchronous,
}

/// Time at which a commit on SQLite is synced to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronous {
    /// Before the answer.
    Full,
    /// Shortly after the answer. A power cut may lose the last commits; a crash of the process
    /// loses none.
    Normal,
}

/// Handle of the database. Clones share the connections.
#[derive(Debug, Clone)]
pub struct Db(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    backend: DbBackend,
    /// Connections for writes: a single connection on SQLite, which allows one writer; the pool of
    /// `reader` on PostgreSQL.
    writer: DatabaseConnection,
    reader: Reader,
    /// Connections to PostgreSQL whose planner is restricted to indexes, see [`Db::by_key`].
    by_key: Option<DatabaseConnection>,
    scans: Scans,
    life: Life,
    /// Idle connection to a SQLite file, open until the end. SQLite deletes the write-ahead log
    /// with the last connection, and the pools may close all of theirs after a fault.
    keeper: AsyncMutex<Option<SqliteConnection>>,
    /// Lock of a SQLite file for exclusive use by this process; absent without exclusive use.
    lock: Mutex<Option<Lock>>,
    /// Held by a SQLite write transaction, so that a failed commit is handled before the next
    /// transaction begins.
    writing: AsyncMutex<()>,
    storage: Storage,
    renewal: Renewal,
    committed: Arc<Notify>,
    announce: Arc<Notify>,
}

impl Inner {
    fn new(
        backend: DbBackend,
        writer: DatabaseConnection,
        reader: DatabaseConnection,
        scans: Scans,
        storage: Storage,
        life: Life,
    ) -> Self {
        Self {
            backend,
            writer,
            reader: Reader::new(reader, life.clone()),
            by_key: None,
            scans,
            life,
            keeper: AsyncMutex::default(),
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
        let (writer, reader, life) = (by_key.clone(), by_key.clone(), self.0.life.clone());
        let mut db = Inner::new(self.0.backend, writer, reader, scans, storage, life);
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
    pub async fn unanswered(&self) -> Error {
        if let Some(fault) = self.0.storage.fault() {
            return Error::Storage(fault);
        }
        if self.0.life.is_there().await {
            Error::DatabaseBusy
        } else {
            Error::DatabaseAway
        }
    }

    /// Checks that the database answers a query.
    pub async fn ping(&self) -> Result<(), DbErr> {
        let alive = self.0.reader.execute_unprepared("SELECT 1");
        if let Ok(alive) = timeout(ACQUIRE_TIMEOUT, alive).await {
            return alive.map(|_| ());
        }
        let error = DbErr::ConnectionAcquire(ConnAcquireErr::Timeout);
        Err(self.0.life.explain(error).await)
    }

    /// Attempts to connect to PostgreSQL and returns the problem, because a pool only reports a
    /// timeout. `None` if the attempt succeeds, and on SQLite.
    pub async fn connect_problem(&self) -> Option<String> {
        if self.0.backend != DbBackend::Postgres {
            return None;
        }
        let options = self
            .0
            .reader
            .get_postgres_connection_pool()
            .connect_options();
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
        if let Some(keeper) = self.0.keeper.lock().await.take()
            && let Err(error) = keeper.close().await
        {
            tracing::debug!(%error, "closing the database failed");
        }
        drop(self.0.lock.lock().take());
    }
}

/// Returns true if a connection error at the start may pass without intervention: the server is not
/// ready, or has no free connection.
pub fn may_pass(error: &DbErr) -> bool {
    // Codes of class 28 mean a wrong password or user name, which a retry does not repair.
    error::is_away(error) && error::code(error).is_none_or(|code| !code.starts_with("28"))
}

fn to_db_err(error: sqlx::Error) -> DbErr {
    DbErr::Conn(sea_orm::RuntimeErr::SqlxError(Arc::new(error)))
}
