//! The database: connecting, migrating, reading, and the one way to write.

use std::{
    cell::Cell,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use migration::{Migrator, MigratorTrait};
use sea_orm::{
    AccessMode, ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction,
    DbBackend, DbErr, IsolationLevel, SqliteTransactionMode, Statement, TransactionOptions,
    TransactionTrait,
    sqlx::{
        self, ConnectOptions as _, Connection,
        pool::PoolOptions,
        postgres::PgConnectOptions,
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
    },
};
use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard, Notify},
    time::timeout,
};

use self::{lock::Lock, storage::Storage};
use crate::error::{Error, Result};

mod lock;
pub mod signals;
pub mod storage;

/// How long a call waits for a connection before the database counts as away.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a transaction may take before the database counts as away.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How many connections read a SQLite file; one more writes it.
const SQLITE_READERS: u32 = 4;

/// Many prepared statements: inserts of many rows come in several lengths.
const STATEMENTS: usize = 512;

/// What the planner of PostgreSQL is told on connections for work by key, see [`Db::by_key`].
pub const BY_KEY: [(&str, &str); 7] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_material", "off"),
    ("enable_sort", "off"),
    // What is off is only made to look expensive, and what looks expensive would be compiled.
    ("jit", "off"),
];

/// How many of all connections are for that at most.
const BY_KEY_CONNECTIONS: u32 = 8;

/// The name of our connections in `pg_stat_activity`.
const APPLICATION_NAME: &str = "watchpost";

/// Guards migrations on PostgreSQL; any number will do that nobody else uses in this database.
const MIGRATION_LOCK: i64 = 0x7761_7463_6870;

tokio::task_local! {
    /// What the feed calls the transaction that `Db::write` runs.
    static COMMIT_SEQ: Cell<Option<i64>>;
}

/// Which database, and how to treat it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `sqlite://…` or `postgres://…`.
    pub url: String,
    /// How many connections to PostgreSQL are open at most.
    pub connections: u32,
    /// Whether every commit on SQLite waits until it is on the disk.
    pub sqlite_synchronous: Synchronous,
}

/// When a commit on SQLite is on the disk.
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
    reader: DatabaseConnection,
    /// Other connections to PostgreSQL, see [`Db::by_key`].
    by_key: Option<DatabaseConnection>,
    /// The file of a SQLite database.
    file: Option<PathBuf>,
    /// Held while this process works on that file.
    lock: Mutex<Option<Lock>>,
    /// On SQLite, where one transaction writes at a time: whose turn it is.
    writing: AsyncMutex<()>,
    storage: Storage,
    committed: Arc<Notify>,
    announce: Arc<Notify>,
}

impl Inner {
    fn new(
        backend: DbBackend,
        writer: DatabaseConnection,
        reader: DatabaseConnection,
        storage: Storage,
    ) -> Self {
        Self {
            backend,
            writer,
            reader,
            by_key: None,
            file: None,
            lock: Mutex::default(),
            writing: AsyncMutex::default(),
            storage,
            committed: Arc::default(),
            announce: Arc::default(),
        }
    }
}

impl Db {
    /// Prepares the connections. SQLite is opened at once; PostgreSQL when it is first needed.
    pub async fn connect(settings: &Settings) -> Result<Self, DbErr> {
        if settings.url.starts_with("sqlite:") {
            Self::open_sqlite(settings).await
        } else {
            Self::connect_postgres(settings).await
        }
    }

    async fn open_sqlite(settings: &Settings) -> Result<Self, DbErr> {
        let options = SqliteConnectOptions::from_str(&settings.url)
            .map_err(|error| DbErr::Custom(error.to_string()))?;
        let path = options.get_filename().to_path_buf();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| {
                DbErr::Custom(format!(
                    "the folder {} cannot be made: {error}",
                    folder.display()
                ))
            })?;
        }
        let synchronous = match settings.sqlite_synchronous {
            Synchronous::Full => SqliteSynchronous::Full,
            Synchronous::Normal => SqliteSynchronous::Normal,
        };
        if !path.exists() {
            // Made here and not by the pools: a connection that takes the place of a broken one must not make an empty
            // database where the file was deleted.
            let connection = options.clone().create_if_missing(true).connect().await;
            let closed = connection.map_err(to_db_err)?.close().await;
            closed.map_err(to_db_err)?;
        }
        let storage = Storage::of_file(&path);
        let pool = async |connections: u32, writes: Option<Storage>| {
            let mut options = lasting(&settings.url);
            options
                .map_sqlx_sqlite_pool_opts(move |options| guarded(options, writes.clone()))
                .min_connections(1)
                .max_connections(connections)
                .acquire_timeout(WRITE_TIMEOUT)
                .test_before_acquire(false)
                .sqlx_logging(false)
                .map_sqlx_sqlite_opts(move |options| {
                    options
                        .create_if_missing(false)
                        .journal_mode(SqliteJournalMode::Wal)
                        .synchronous(synchronous)
                        .foreign_keys(true)
                        .busy_timeout(Duration::from_secs(5))
                        // Else every insert of many rows writes its undo log to a file.
                        .pragma("temp_store", "MEMORY")
                        // In KiB: the pages that a batch of ingests changes fit.
                        .pragma("cache_size", "-8192")
                        // In pages: pages that change often are copied back less often.
                        .pragma("wal_autocheckpoint", "4000")
                        .statement_cache_capacity(STATEMENTS)
                });
            Database::connect(options).await
        };
        let writer = pool(1, Some(storage.clone())).await?;
        let reader = pool(SQLITE_READERS, None).await?;
        let mut db = Inner::new(DbBackend::Sqlite, writer, reader, storage);
        db.file = Some(path);
        Ok(Self(Arc::new(db)))
    }

    async fn connect_postgres(settings: &Settings) -> Result<Self, DbErr> {
        let pool = async |connections: u32, planner: &[(&'static str, &'static str)]| {
            let planner = planner.to_vec();
            let mut options = lasting(&settings.url);
            options
                .map_sqlx_postgres_pool_opts(|options| guarded(options, None))
                .connect_lazy(true)
                .min_connections(0)
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .connect_timeout(ACQUIRE_TIMEOUT)
                .test_before_acquire_if_idle_for(Duration::from_millis(500))
                .sqlx_logging(false)
                .map_sqlx_postgres_opts(move |options: PgConnectOptions| {
                    options
                        .application_name(APPLICATION_NAME)
                        // A transaction left open would hold back the change feed of everybody.
                        .options([("idle_in_transaction_session_timeout", "30s")])
                        .options(planner.iter().copied())
                        .statement_cache_capacity(STATEMENTS)
                });
            Database::connect(options).await
        };
        let by_key = (settings.connections * 3 / 8).clamp(1, BY_KEY_CONNECTIONS);
        let others = pool(settings.connections - by_key, &[]).await?;
        let by_key = pool(by_key, &BY_KEY).await?;
        let storage = Storage::of_server();
        let mut db = Inner::new(DbBackend::Postgres, others.clone(), others, storage);
        db.by_key = Some(by_key);
        Ok(Self(Arc::new(db)))
    }

    /// Which kind of database it is.
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
        let storage = self.0.storage.clone();
        let mut db = Inner::new(self.0.backend, by_key.clone(), by_key.clone(), storage);
        db.committed = self.0.committed.clone();
        db.announce = self.0.announce.clone();
        Self(Arc::new(db))
    }

    /// Where to read outside of a transaction.
    pub fn reader(&self) -> &DatabaseConnection {
        &self.0.reader
    }

    /// A transaction that reads, and sees one moment in all that it reads.
    pub async fn snapshot(&self) -> Result<DatabaseTransaction> {
        let postgres = self.0.backend == DbBackend::Postgres;
        // On SQLite every transaction reads one snapshot.
        let options = TransactionOptions {
            isolation_level: postgres.then_some(IsolationLevel::RepeatableRead),
            access_mode: postgres.then_some(AccessMode::ReadOnly),
            ..Default::default()
        };
        Ok(self.0.reader.begin_with_options(options).await?)
    }

    /// Runs `work` in one transaction, commits, and wakes the change feed. If `work` fails, nothing is written.
    pub async fn write<T>(
        &self,
        work: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T>,
    ) -> Result<T> {
        let done = self.write_quietly(work).await?;
        self.wake();
        Ok(done)
    }

    /// Runs `work`, a single statement, which is a transaction of its own: that saves two round trips. For
    /// PostgreSQL.
    pub async fn write_at_once(
        &self,
        work: impl AsyncFnOnce(&DatabaseConnection) -> Result<()>,
    ) -> Result<()> {
        let done = timeout(WRITE_TIMEOUT, work(&self.0.writer)).await;
        self.noted(done.unwrap_or(Err(Error::DatabaseAway)))?;
        self.wake();
        Ok(())
    }

    fn wake(&self) {
        self.0.committed.notify_one();
        self.0.announce.notify_one();
    }

    /// The same as [`Self::write`] for work that records no change: nobody is woken.
    pub async fn write_quietly<T>(
        &self,
        work: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T>,
    ) -> Result<T> {
        let transaction = COMMIT_SEQ.scope(Cell::new(None), self.transaction(work));
        let done = timeout(WRITE_TIMEOUT, transaction).await;
        self.noted(done.unwrap_or(Err(Error::DatabaseAway)))
    }

    /// Runs `work` in a transaction and commits it. What is returned as done is a fact: the transaction was a real one,
    /// it has ended with a commit, and the files that hold it are those at their paths.
    async fn transaction<T>(
        &self,
        work: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T>,
    ) -> Result<T> {
        let options = TransactionOptions {
            // A deferred one that reads, then writes, fails as "locked" whatever the busy timeout.
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..Default::default()
        };
        let mut turn = self.turn().await;
        self.0.storage.check_files()?;
        let tx = self.0.writer.begin_with_options(options).await?;
        let done = match work(&tx).await {
            Ok(done) => done,
            Err(error) => {
                // SQLite may have rolled back by itself: then this fails, and the connection is closed.
                if tx.rollback().await.is_ok() && error.storage_fault().is_none() {
                    turn.settle();
                }
                return Err(error);
            }
        };
        tx.commit().await?;
        self.0.storage.check_files()?;
        turn.settle();
        Ok(done)
    }

    /// Waits for the turn to write. On PostgreSQL, where many write at a time, it is always there.
    async fn turn(&self) -> Turn<'_> {
        let guard = if self.0.backend == DbBackend::Sqlite {
            Some(self.0.writing.lock().await)
        } else {
            None
        };
        Turn {
            storage: &self.0.storage,
            is_settled: guard.is_none(),
            _guard: guard,
        }
    }

    /// Notes what came of a write.
    fn noted<T>(&self, done: Result<T>) -> Result<T> {
        match &done {
            Ok(_) => self.0.storage.committed(),
            Err(error) => self.0.storage.failed(error),
        }
        done
    }

    /// Whether the database can be written.
    pub fn storage(&self) -> &Storage {
        &self.0.storage
    }

    /// What the feed calls the transaction that this task runs, once `set_commit_seq` has said so.
    pub(crate) fn commit_seq() -> Option<i64> {
        COMMIT_SEQ.try_with(Cell::get).ok().flatten()
    }

    /// Names the transaction that this task runs, for the changes that it records later.
    pub(crate) fn set_commit_seq(number: i64) {
        // Outside of `write` there is nothing to remember it.
        let _ = COMMIT_SEQ.try_with(|seq| seq.set(Some(number)));
    }

    /// Wakes up after this process has committed something. For the one reader of the feed.
    pub(crate) async fn committed(&self) {
        self.0.committed.notified().await;
    }

    /// Has the reader of the feed look again.
    pub(crate) fn wake_feed(&self) {
        self.0.committed.notify_one();
    }

    /// Wakes up when other processes are to be told of a commit.
    pub(crate) async fn to_announce(&self) {
        self.0.announce.notified().await;
    }

    /// Brings the schema up to date. Several processes may do so at once.
    pub async fn migrate_up(&self) -> Result<(), DbErr> {
        self.migrating(|db| async move { Migrator::up(&db, None).await })
            .await
    }

    /// Takes back the last `steps` migrations.
    pub async fn migrate_down(&self, steps: u32) -> Result<(), DbErr> {
        self.migrating(move |db| async move { Migrator::down(&db, Some(steps)).await })
            .await
    }

    /// Every migration by name, and whether it was applied. Writes nothing.
    pub async fn migration_status(&self) -> Result<Vec<(String, bool)>, DbErr> {
        let pending = Migrator::get_pending_migrations_read_only(&self.0.reader).await?;
        let pending: Vec<_> = pending
            .iter()
            .map(|migration| migration.name().to_string())
            .collect();
        let status = |name: String| {
            let applied = !pending.contains(&name);
            (name, applied)
        };
        Ok(Migrator::migrations()
            .iter()
            .map(|migration| status(migration.name().to_string()))
            .collect())
    }

    /// Fails if servers work on this PostgreSQL database, and names the first of them: a schema must not be taken away under them.
    pub async fn refuse_beside_servers(&self) -> Result<(), DbErr> {
        if self.0.backend != DbBackend::Postgres {
            return Ok(());
        }
        let sql = "SELECT pid, host(client_addr) AS host, backend_start::text AS since FROM pg_stat_activity \
            WHERE datname = current_database() AND application_name = $1 AND pid <> pg_backend_pid() ORDER BY backend_start LIMIT 1";
        let servers =
            Statement::from_sql_and_values(DbBackend::Postgres, sql, [APPLICATION_NAME.into()]);
        let Some(row) = self.0.reader.query_one_raw(servers).await? else {
            return Ok(());
        };
        let (pid, host) = (
            row.try_get::<i32>("", "pid")?,
            row.try_get::<Option<String>>("", "host")?,
        );
        let since: String = row.try_get("", "since")?;
        let host = host.unwrap_or_else(|| "this machine".into());
        Err(DbErr::Custom(format!(
            "the database is in use by a server at {host} (PostgreSQL backend {pid}, since {since})"
        )))
    }

    /// Takes the SQLite database for this process, until it is closed. Fails if another process has it, and names that
    /// one. `purpose` is what this process does, as a command: `serve`. On PostgreSQL several processes work on one database.
    pub fn lock(&self, purpose: &str) -> Result<(), DbErr> {
        if let Some(file) = &self.0.file {
            let lock = Lock::take(file, purpose)?;
            *self.0.lock.lock().unwrap_or_else(PoisonError::into_inner) = Some(lock);
        }
        Ok(())
    }

    /// Migrates while holding a lock that every other process waits for.
    async fn migrating<F>(&self, migrate: impl FnOnce(DatabaseConnection) -> F) -> Result<(), DbErr>
    where
        F: Future<Output = Result<(), DbErr>>,
    {
        if self.0.backend == DbBackend::Sqlite {
            // The lock of the process keeps others away.
            return migrate(self.0.writer.clone()).await;
        }
        // The lock has a connection of its own; it is released with it, however the migration ends.
        let mut connection = self
            .0
            .writer
            .get_postgres_connection_pool()
            .acquire()
            .await
            .map_err(to_db_err)?
            .detach();
        let lock = sqlx::query("SELECT pg_advisory_lock($1)").bind(MIGRATION_LOCK);
        lock.execute(&mut connection).await.map_err(to_db_err)?;
        let done = migrate(self.0.writer.clone()).await;
        drop(connection);
        done
    }

    /// Asks the database for a sign of life.
    pub async fn ping(&self) -> Result<()> {
        let alive = self.0.reader.execute_unprepared("SELECT 1");
        match timeout(ACQUIRE_TIMEOUT, alive).await {
            Ok(alive) => Ok(alive.map(|_| ())?),
            Err(_) => Err(Error::DatabaseAway),
        }
    }

    /// Closes all connections.
    pub async fn close(self) {
        let pools = [&self.0.writer, &self.0.reader].into_iter();
        for pool in pools.chain(&self.0.by_key) {
            if let Err(error) = pool.close_by_ref().await {
                tracing::debug!(%error, "closing the database failed");
            }
        }
        // Another process may begin only now.
        let lock = self.0.lock.lock();
        drop(lock.unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// The turn of one transaction to write on SQLite. Unless it is settled, the state of the connection is unknown when it
/// ends: begin, commit or rollback have failed, or nobody waited for them.
struct Turn<'a> {
    storage: &'a Storage,
    is_settled: bool,
    _guard: Option<MutexGuard<'a, ()>>,
}

impl Turn<'_> {
    fn settle(&mut self) {
        self.is_settled = true;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.storage.doubt_writer();
        }
    }
}

/// Keeps connections from being used again whose transaction has not ended: sqlx would take the next one for a savepoint
/// in it, which nobody commits. SQLite rolls back by itself when a commit fails, sqlx then fails to do so, and goes on
/// counting. `writes` is the storage of the connection that writes SQLite, which is closed when its state is unknown.
fn guarded<D: sqlx::Database>(options: PoolOptions<D>, writes: Option<Storage>) -> PoolOptions<D> {
    let options = options.after_release(|connection, _| {
        Box::pin(async move {
            if connection.is_in_transaction() {
                // A rollback may be under way. Whatever is sent after it waits for it.
                connection.ping().await?;
            }
            Ok(!connection.is_in_transaction())
        })
    });
    let Some(storage) = writes else {
        return options;
    };
    let opened = storage.clone();
    options
        .after_connect(move |_, _| {
            opened.writer_opened();
            Box::pin(async { Ok(()) })
        })
        .before_acquire(move |connection, _| {
            let is_sound = !storage.take_doubt() && !connection.is_in_transaction();
            Box::pin(async move { Ok(is_sound) })
        })
}

/// Connections that are kept for as long as they work. Whenever the pool looks for old ones, it may misread how many
/// are idle and count through nearly 2^64 of them, which takes a thread of the runtime for good (sqlx 0.9.0).
fn lasting(url: &str) -> ConnectOptions {
    let mut options = ConnectOptions::new(url);
    options.idle_timeout(None).max_lifetime(None);
    options
}

/// Whether an error at the start may pass by itself: the server is not there yet, or has no room.
pub fn may_pass(error: &DbErr) -> bool {
    // A wrong password or name comes with a code of its own, and stays wrong.
    crate::error::is_away(error)
        && crate::error::code(error).is_none_or(|code| !code.starts_with("28"))
}

fn to_db_err(error: sqlx::Error) -> DbErr {
    DbErr::Conn(sea_orm::RuntimeErr::SqlxError(Arc::new(error)))
}
