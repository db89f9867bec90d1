//! The database: its settings, its connections, and reading. Writing is in `db/write.rs`, reading that may take long in
//! `db/scans.rs`.

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

/// Address and treatment of a database.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `sqlite://…` or `postgres://…`.
    pub url: String,
    /// Number of connections to PostgreSQL that are open at most.
    pub connections: u32,
    /// Durability of a commit on SQLite.
    pub sqlite_synchronous: Synchronous,
}

/// Moment at which a commit on SQLite is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronous {
    /// Before it is answered.
    Full,
    /// A moment later: a power cut may take the last commits, a crash of the process takes none.
    Normal,
}

/// The database. Clones share it.
#[derive(Debug, Clone)]
pub struct Db(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    backend: DbBackend,
    /// On SQLite one connection, since only one can write; on PostgreSQL the same pool as `reader`.
    writer: DatabaseConnection,
    reader: Reader,
    /// Other connections to PostgreSQL, see [`Db::by_key`].
    by_key: Option<DatabaseConnection>,
    scans: Scans,
    life: Life,
    /// Connection to a SQLite file that stays open and idle until the end: SQLite deletes the write-ahead log with the
    /// last connection to its database, and the pools may close all of theirs after a fault.
    keeper: AsyncMutex<Option<SqliteConnection>>,
    /// Lock on a SQLite file, if this process works on it alone.
    lock: Mutex<Option<Lock>>,
    /// Held by the transaction that writes SQLite, so that a failed commit is dealt with before the next one begins.
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
    /// Kind of the database.
    pub fn backend(&self) -> DbBackend {
        self.0.backend
    }

    /// The same database for work that finds few rows among many by their keys, thousands of times a second. On
    /// PostgreSQL its connections are others, whose planner is kept to indexes and their order: a plan that was made
    /// while a table was small, or had few such rows, would else read all of them when there are many.
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

    /// Connections for short reads outside of a transaction: by keys, or a page by an index. See [`Db::scan`] for reading
    /// that looks at many rows.
    pub fn reader(&self) -> &Reader {
        &self.0.reader
    }

    /// A transaction that reads, and sees one moment in all that it reads.
    pub async fn snapshot(&self) -> Result<DatabaseTransaction> {
        self.0.reader.snapshot().await
    }

    /// Closes the connections to PostgreSQL that are open now before they are used again. What they know of the database
    /// may be of another one: their types, plans and server.
    pub(crate) fn renew_connections(&self) {
        self.0.renewal.renew();
    }

    /// State of the storage: the reason why the database cannot be written, if there is one.
    pub fn storage(&self) -> &Storage {
        &self.0.storage
    }

    /// Error for a request that the database did not answer in time: the fault of its storage if one is known, else that
    /// it is busy, or that it cannot be reached.
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

    /// Asks the database for a sign of life.
    pub async fn ping(&self) -> Result<(), DbErr> {
        let alive = self.0.reader.execute_unprepared("SELECT 1");
        if let Ok(alive) = timeout(ACQUIRE_TIMEOUT, alive).await {
            return alive.map(|_| ());
        }
        let error = DbErr::ConnectionAcquire(ConnAcquireErr::Timeout);
        Err(self.0.life.explain(error).await)
    }

    /// Reason why PostgreSQL cannot be reached, from an attempt to connect. A pool only tells that it has waited in
    /// vain. `None` if the attempt succeeds, and on SQLite.
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
                // Nothing is lost with a connection that was only tried.
                let _ = connection.close().await;
                None
            }
            Ok(Err(error)) => Some(error::Chain(&error).to_string()),
            Err(_) => Some(format!("no answer within {ACQUIRE_TIMEOUT:?}")),
        }
    }

    /// Closes all connections, then gives the lock of a SQLite file back.
    pub async fn close(self) {
        // Queries of scans that go on are cancelled over the others.
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

/// Whether an error at the start may pass by itself: the server is not there yet, or has no room.
pub fn may_pass(error: &DbErr) -> bool {
    // A wrong password or name comes with a code of its own, and stays wrong.
    error::is_away(error) && error::code(error).is_none_or(|code| !code.starts_with("28"))
}

fn to_db_err(error: sqlx::Error) -> DbErr {
    DbErr::Conn(sea_orm::RuntimeErr::SqlxError(Arc::new(error)))
}
