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
    Db, Inner, Settings, Synchronous,
    lock::Lock,
    protect,
    reader::{Life, Reader},
    renewal::Renewal,
    scans::{Scans, Slot, Watch},
    storage::Storage,
    to_db_err,
};

/// Maximum wait of a call for a PostgreSQL connection.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum wait of a call for a SQLite connection, longer than any transaction may take.
const SQLITE_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// Number of SQLite connections for short reads; one more connection writes.
const SQLITE_READERS: u32 = 4;

/// Number of SQLite connections for scans.
const SQLITE_SCANS: u32 = 2;

/// Idle time after which a PostgreSQL connection is tested before use.
pub(super) const TESTED_AFTER: Duration = Duration::from_millis(500);

/// Maximum number of prepared statements per connection; inserts of many rows come in several
/// lengths.
const STATEMENTS: usize = 512;

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
const BY_KEY_CONNECTIONS: u32 = 8;
const SCAN_CONNECTIONS: u32 = 8;

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
    pub async fn connect_alone(settings: &Settings, purpose: &str) -> Result<Self, DbErr> {
        if settings.url.starts_with("sqlite:") {
            let file = sqlite_file(&settings.url)?;
            let lock = Lock::take(file.get_filename(), purpose)?;
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
    let options =
        SqliteConnectOptions::from_str(url).map_err(|error| DbErr::Custom(error.to_string()))?;
    let path = options.get_filename();
    let failed = |what: &str, path: &Path, error: std::io::Error| {
        DbErr::Custom(format!(
            "the {what} {} cannot be made: {error}",
            path.display()
        ))
    };
    if let Some(folder) = path.parent() {
        protect::make_folder(folder).map_err(|error| failed("folder", folder, error))?;
    }
    if !path.exists() {
        let made = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path);
        made.map_err(|error| failed("database file", path, error))?;
    }
    protect::files(path);
    Ok(options.create_if_missing(false))
}

async fn open_sqlite(
    settings: &Settings,
    file: &SqliteConnectOptions,
    lock: Option<Lock>,
) -> Result<Db, DbErr> {
    let keeper = open_keeper(file).await.map_err(to_db_err)?;
    let storage = Storage::of_file(file.get_filename());
    let synchronous = match settings.sqlite_synchronous {
        Synchronous::Full => SqliteSynchronous::Full,
        Synchronous::Normal => SqliteSynchronous::Normal,
    };
    let pool = async |connections: u32, writes: Option<Storage>, watch: Option<Watch>| {
        let mut options = lasting(&settings.url);
        options
            .map_sqlx_sqlite_pool_opts(move |options| {
                let options = guarded(options, writes.clone());
                match &watch {
                    Some(watch) => watch.clone().over_sqlite(options),
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
                    .statement_cache_capacity(STATEMENTS)
            });
        Database::connect(options).await
    };
    let writer = pool(1, Some(storage.clone()), None).await?;
    let reader = pool(SQLITE_READERS, None, None).await?;
    let life = Life::of(&reader, storage.clone());
    let mut slots = Vec::new();
    for _ in 0..SQLITE_SCANS {
        let watch = Watch::default();
        let reader = pool(1, None, Some(watch.clone())).await?;
        let reader = Reader::new(reader, life.clone());
        slots.push(Slot { reader, watch });
    }
    let scans = Scans::new(slots, life.clone());
    let mut db = Inner::new(DbBackend::Sqlite, writer, reader, scans, storage, life);
    db.keeper = AsyncMutex::new(Some(keeper));
    *db.lock.get_mut() = lock;
    Ok(Db(Arc::new(db)))
}

/// Opens the connection that preserves the write-ahead log. The first read creates the log.
async fn open_keeper(file: &SqliteConnectOptions) -> Result<SqliteConnection, sqlx::Error> {
    let options = file.clone().journal_mode(SqliteJournalMode::Wal);
    let mut keeper = options
        .busy_timeout(Duration::from_secs(5))
        .connect()
        .await?;
    keeper.execute("SELECT count(*) FROM sqlite_schema").await?;
    Ok(keeper)
}

async fn connect_postgres(settings: &Settings) -> Result<Db, DbErr> {
    let renewal = Renewal::default();
    // A pool for scans has a canceller, and other connections over which queries are cancelled.
    let pool = async |connections: u32,
                      planner: &[(&'static str, &'static str)],
                      scan: Option<(Watch, PgPool)>| {
        let (planner, renewal) = (planner.to_vec(), renewal.clone());
        let mut options = lasting(&settings.url);
        options
            .map_sqlx_postgres_pool_opts(move |options| {
                if let Some((watch, others)) = &scan {
                    return watch.clone().over_postgres(options, others, &renewal);
                }
                let renewal = renewal.clone();
                guarded(options, None).before_acquire(move |connection, meta| {
                    let is_new = renewal.allows(meta.age);
                    Box::pin(async move {
                        if is_new && meta.idle_for >= TESTED_AFTER {
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
                    .statement_cache_capacity(STATEMENTS)
            });
        Database::connect(options).await
    };
    let by_key = (settings.connections * 3 / 8).clamp(1, BY_KEY_CONNECTIONS);
    let scans = (settings.connections * 3 / 16).clamp(1, SCAN_CONNECTIONS);
    let others: DatabaseConnection = pool(settings.connections - by_key - scans, &[], None).await?;
    let by_key = pool(by_key, &BY_KEY, None).await?;
    let storage = Storage::of_server();
    let life = Life::of(&others, storage.clone());
    let mut slots = Vec::new();
    for _ in 0..scans {
        let watch = Watch::default();
        let cancelling = others.get_postgres_connection_pool().clone();
        let reader = pool(1, &[], Some((watch.clone(), cancelling))).await?;
        let reader = Reader::new(reader, life.clone());
        slots.push(Slot { reader, watch });
    }
    let scans = Scans::new(slots, life.clone());
    let (writer, backend) = (others.clone(), DbBackend::Postgres);
    let mut db = Inner::new(backend, writer, others, scans, storage, life);
    db.by_key = Some(by_key);
    db.renewal = renewal;
    Ok(Db(Arc::new(db)))
}

/// Prevents the reuse of connections whose transaction has not ended. sqlx would treat the next
/// transaction as a savepoint that nobody commits.
///
/// SQLite rolls back when a commit fails; sqlx's own rollback then fails, and sqlx keeps counting
/// the transaction. `writes` is the storage of the SQLite writer, which is closed while its state
/// is unknown.
fn guarded<D: sqlx::Database>(options: PoolOptions<D>, writes: Option<Storage>) -> PoolOptions<D> {
    let options = options.after_release(|connection, _| {
        Box::pin(async move {
            if connection.is_in_transaction() {
                // A rollback may be in progress; the ping waits for the rollback.
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

/// Returns options without idle timeout and maximum lifetime. The pool's reaper may misread the
/// number of idle connections and loop nearly 2^64 times, which blocks a runtime thread (sqlx
/// 0.9.0).
fn lasting(url: &str) -> ConnectOptions {
    let mut options = ConnectOptions::new(url);
    options.idle_timeout(None).max_lifetime(None);
    options
}
