//! Opens the database: connection pools, and the settings of each connection.

use std::{path::Path, str::FromStr, sync::Arc, time::Duration};

use sea_orm::{
    ConnectOptions, Database, DatabaseConnection, DbBackend, DbErr,
    sqlx::{
        self, ConnectOptions as _, Connection, Executor, PgPool, SqliteConnection,
        pool::PoolOptions,
        postgres::PgConnectOptions,
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
    },
};
use tokio::sync::Mutex as AsyncMutex;

use super::{
    errors::to_db_err,
    handle::{Db, Inner},
    reader::{Reachability, Reader},
    renewal::Renewal,
    scans::{QueryCanceller, Scans, Slot},
    settings::{Settings, Synchronous},
    sqlite::{lock::FileLock, permissions},
    storage::Storage,
    timeouts::{ACQUIRE_TIMEOUT, IDLE_BEFORE_TEST},
};

/// Maximum wait of a call for a SQLite connection, longer than any transaction may take.
const SQLITE_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// Number of SQLite connections for short reads; one more connection writes.
const SQLITE_READERS: u32 = 4;

/// Number of SQLite connections for scans.
const SQLITE_SCANS: u32 = 2;

/// Maximum number of prepared statements per connection; inserts of many rows come in several
/// lengths.
const MAX_CACHED_STATEMENTS: usize = 512;

/// Planner settings on PostgreSQL connections for lookups by key, see [`Db::by_key`].
pub const BY_KEY: [(&str, &str); 7] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_material", "off"),
    ("enable_sort", "off"),
    // Disabled plans only get a high cost, and a high cost would trigger compilation.
    ("jit", "off"),
];

/// Maximum number of connections for lookups by key, and for scans.
const MAX_BY_KEY_CONNECTIONS: u32 = 8;
const MAX_SCAN_CONNECTIONS: u32 = 8;

/// Name of this program's connections in `pg_stat_activity`.
pub(super) const APPLICATION_NAME: &str = "watchpost";

impl Db {
    /// Prepares the connections. SQLite is opened at once, PostgreSQL at the first use.
    pub async fn connect(settings: &Settings) -> Result<Self, DbErr> {
        if settings.url.starts_with("sqlite:") {
            let file = sqlite_file(&settings.url)?;
            open_sqlite(settings, &file, None).await
        } else {
            connect_postgres(settings).await
        }
    }

    /// Variant of [`Self::connect`] for exclusive use of a SQLite file until the database is
    /// closed.
    ///
    /// Fails before the file is opened if another process holds the lock, and names that process.
    /// `purpose` is the command of this process, such as `serve`. On PostgreSQL several processes
    /// may share a database.
    pub async fn connect_exclusive(settings: &Settings, purpose: &str) -> Result<Self, DbErr> {
        if settings.url.starts_with("sqlite:") {
            let file = sqlite_file(&settings.url)?;
            let lock = FileLock::acquire(file.get_filename(), purpose)?;
            open_sqlite(settings, &file, Some(lock)).await
        } else {
            connect_postgres(settings).await
        }
    }
}

/// Returns the options of a SQLite file, and creates an empty file if the file is missing. The
/// pools never create the file: a replacement connection must not create an empty database after a
/// deletion.
fn sqlite_file(url: &str) -> Result<SqliteConnectOptions, DbErr> {
    let options = SqliteConnectOptions::from_str(url).map_err(|error| DbErr::Custom(error.to_string()))?;
    let path = options.get_filename();
    let failed = |what: &str, path: &Path, error: std::io::Error| {
        DbErr::Custom(format!("cannot create the {what} {}: {error}", path.display()))
    };
    if let Some(folder) = path.parent() {
        permissions::create_folder(folder).map_err(|error| failed("folder", folder, error))?;
    }
    if !path.exists() {
        let created = std::fs::File::options().create(true).append(true).open(path);
        created.map_err(|error| failed("database file", path, error))?;
    }
    permissions::restrict_files(path);
    Ok(options.create_if_missing(false))
}

async fn open_sqlite(settings: &Settings, file: &SqliteConnectOptions, lock: Option<FileLock>) -> Result<Db, DbErr> {
    let wal_connection = open_wal_connection(file).await.map_err(to_db_err)?;
    let storage = Storage::for_file(file.get_filename());
    let synchronous = match settings.sqlite_synchronous {
        Synchronous::Full => SqliteSynchronous::Full,
        Synchronous::Normal => SqliteSynchronous::Normal,
    };
    let pool = async |connections: u32, writer_storage: Option<Storage>, canceller: Option<QueryCanceller>| {
        let mut options = pool_options(&settings.url);
        options
            .map_sqlx_sqlite_pool_opts(move |options| {
                let options = guard_transactions(options, writer_storage.clone());
                match &canceller {
                    Some(canceller) => canceller.clone().attach_to_sqlite(options),
                    None => options,
                }
            })
            .min_connections(1)
            .max_connections(connections)
            .acquire_timeout(SQLITE_ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .sqlx_logging(false)
            .map_sqlx_sqlite_opts(move |options| {
                options
                    .create_if_missing(false)
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(synchronous)
                    .foreign_keys(true)
                    .busy_timeout(Duration::from_secs(5))
                    // Otherwise every insert of many rows writes its undo log to a file.
                    .pragma("temp_store", "MEMORY")
                    // In KiB: enough for the pages changed by a batch of ingests.
                    .pragma("cache_size", "-8192")
                    // In pages: frequently changed pages are copied back less often.
                    .pragma("wal_autocheckpoint", "4000")
                    .statement_cache_capacity(MAX_CACHED_STATEMENTS)
            });
        Database::connect(options).await
    };
    let writer = pool(1, Some(storage.clone()), None).await?;
    let reader = pool(SQLITE_READERS, None, None).await?;
    let reachability = Reachability::new(&reader, storage.clone());
    let mut slots = Vec::new();
    for _ in 0..SQLITE_SCANS {
        let canceller = QueryCanceller::default();
        let connection = pool(1, None, Some(canceller.clone())).await?;
        let reader = Reader::new(connection, reachability.clone());
        slots.push(Slot { reader, canceller });
    }
    let scans = Scans::new(slots, reachability.clone());
    let mut db = Inner::new(DbBackend::Sqlite, writer, reader, scans, storage, reachability);
    db.wal_connection = AsyncMutex::new(Some(wal_connection));
    *db.lock.get_mut() = lock;
    Ok(Db(Arc::new(db)))
}

/// Opens the connection that preserves the write-ahead log. The first read creates the log.
async fn open_wal_connection(file: &SqliteConnectOptions) -> Result<SqliteConnection, sqlx::Error> {
    let options = file.clone().journal_mode(SqliteJournalMode::Wal);
    let mut wal_connection = options.busy_timeout(Duration::from_secs(5)).connect().await?;
    wal_connection.execute("SELECT count(*) FROM sqlite_schema").await?;
    Ok(wal_connection)
}

async fn connect_postgres(settings: &Settings) -> Result<Db, DbErr> {
    let renewal = Renewal::default();
    // A pool for scans has a canceller, and other connections over which queries are cancelled.
    let pool =
        async |connections: u32, planner: &[(&'static str, &'static str)], scan: Option<(QueryCanceller, PgPool)>| {
            let (planner, renewal) = (planner.to_vec(), renewal.clone());
            let mut options = pool_options(&settings.url);
            options
                .map_sqlx_postgres_pool_opts(move |options| {
                    if let Some((canceller, others)) = &scan {
                        return canceller.clone().attach_to_postgres(options, others, &renewal);
                    }
                    let renewal = renewal.clone();
                    guard_transactions(options, None).before_acquire(move |connection, meta| {
                        let is_new = renewal.allows(meta.age);
                        Box::pin(async move {
                            if is_new && meta.idle_for >= IDLE_BEFORE_TEST {
                                connection.ping().await?;
                            }
                            Ok(is_new)
                        })
                    })
                })
                .connect_lazy(true)
                .min_connections(0)
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .connect_timeout(ACQUIRE_TIMEOUT)
                .test_before_acquire(false)
                .sqlx_logging(false)
                .map_sqlx_postgres_opts(move |options: PgConnectOptions| {
                    options
                        .application_name(APPLICATION_NAME)
                        // A transaction left open would block the change feed of all processes.
                        .options([("idle_in_transaction_session_timeout", "30s")])
                        .options(planner.iter().copied())
                        .statement_cache_capacity(MAX_CACHED_STATEMENTS)
                });
            Database::connect(options).await
        };
    let by_key = (settings.connections * 3 / 8).clamp(1, MAX_BY_KEY_CONNECTIONS);
    let scans = (settings.connections * 3 / 16).clamp(1, MAX_SCAN_CONNECTIONS);
    let general: DatabaseConnection = pool(settings.connections - by_key - scans, &[], None).await?;
    let by_key = pool(by_key, &BY_KEY, None).await?;
    let storage = Storage::for_server();
    let reachability = Reachability::new(&general, storage.clone());
    let mut slots = Vec::new();
    for _ in 0..scans {
        let canceller = QueryCanceller::default();
        let cancelling = general.get_postgres_connection_pool().clone();
        let connection = pool(1, &[], Some((canceller.clone(), cancelling))).await?;
        let reader = Reader::new(connection, reachability.clone());
        slots.push(Slot { reader, canceller });
    }
    let scans = Scans::new(slots, reachability.clone());
    let (writer, backend) = (general.clone(), DbBackend::Postgres);
    let mut db = Inner::new(backend, writer, general, scans, storage, reachability);
    db.by_key = Some(by_key);
    db.renewal = renewal;
    Ok(Db(Arc::new(db)))
}

/// Prevents the reuse of connections whose transaction has not ended. sqlx would treat the next
/// transaction as a savepoint that nobody commits.
///
/// SQLite rolls back when a commit fails; sqlx's own rollback then fails, and sqlx keeps counting
/// the transaction. `writer_storage` is the storage of the SQLite writer, which is closed while its state
/// is unknown.
fn guard_transactions<D: sqlx::Database>(options: PoolOptions<D>, writer_storage: Option<Storage>) -> PoolOptions<D> {
    let options = options.after_release(|connection, _| {
        Box::pin(async move {
            if connection.is_in_transaction() {
                // A rollback may be in progress; the ping waits for the rollback.
                connection.ping().await?;
            }
            Ok(!connection.is_in_transaction())
        })
    });
    let Some(storage) = writer_storage else {
        return options;
    };
    let opened = storage.clone();
    options
        .after_connect(move |_, _| {
            opened.writer_opened();
            Box::pin(async { Ok(()) })
        })
        .before_acquire(move |connection, _| {
            let is_sound = !storage.take_writer_suspicion() && !connection.is_in_transaction();
            Box::pin(async move { Ok(is_sound) })
        })
}

/// Returns options without idle timeout and maximum lifetime. The pool's reaper may misread the
/// number of idle connections and loop nearly 2^64 times, which blocks a runtime thread (sqlx
/// 0.9.0).
fn pool_options(url: &str) -> ConnectOptions {
    let mut options = ConnectOptions::new(url);
    options.idle_timeout(None).max_lifetime(None);
    options
}
