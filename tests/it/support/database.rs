//! A database of its own for every test, on SQLite and on PostgreSQL.

use std::{path::Path, thread, time::Duration};

use migration::{Migrator, MigratorTrait};
pub use on_both::on_both;
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, DbErr, Statement};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use uuid::Uuid;

pub use self::cluster::Cluster;

mod cluster;

/// Names a PostgreSQL server to make the databases in, as a role that may. Without it the
/// tests start a private one.
const SERVER_VARIABLE: &str = "WATCHPOST_TEST_DATABASE_URL";

/// What the databases on a server are called, before the UUID that tells them apart.
const PREFIX: &str = "watchpost_test_";

/// The age at which a database is taken for one that a killed test left behind.
const LEFTOVER: Duration = Duration::from_hours(24);

/// The kind of database that a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// A database that nothing else uses. It goes when the value goes.
pub struct TestDatabase {
    url: String,
    home: Home,
}

/// What has to be removed at the end.
enum Home {
    Directory(TempDir),
    Server {
        database: String,
    },
    /// Nothing: the test takes care of it.
    Elsewhere,
}

impl TestDatabase {
    /// A database without any table.
    pub async fn empty(backend: Backend) -> Self {
        match backend {
            Backend::Sqlite => Self::sqlite(&[]),
            Backend::Postgres => Self::postgres("template0").await,
        }
    }

    /// A database with every migration applied.
    pub async fn migrated(backend: Backend) -> Self {
        static TEMPLATE: OnceCell<Vec<u8>> = OnceCell::const_new();
        let database = match backend {
            Backend::Sqlite => Self::sqlite(TEMPLATE.get_or_init(migrated_file).await),
            Backend::Postgres => Self::postgres(Server::get().await.template().await).await,
        };
        // A copy is another database, and the cursors of one are not those of the other.
        let id = match backend {
            Backend::Sqlite => "randomblob(16)",
            Backend::Postgres => "gen_random_uuid()",
        };
        let rename = format!("UPDATE feed_state SET database_id = {id}");
        execute(&database.url, &rename).await.expect("a row in feed_state");
        database
    }

    /// The database at this URL, which stays.
    pub fn at(url: &str) -> Self {
        Self { url: url.to_owned(), home: Home::Elsewhere }
    }

    fn sqlite(content: &[u8]) -> Self {
        let directory = TempDir::with_prefix("watchpost-sqlite-").expect("a temporary directory");
        let path = directory.path().join("watchpost.db");
        std::fs::write(&path, content).expect("a file in a directory of ours");
        Self { url: sqlite_url(&path), home: Home::Directory(directory) }
    }

    async fn postgres(template: &str) -> Self {
        let server = Server::get().await;
        let database = new_name();
        let copy = format!("CREATE DATABASE {database} TEMPLATE {template}");
        execute(&server.url, &copy).await.expect("a copy of the template");
        Self { url: server.url_of(&database), home: Home::Server { database } }
    }

    /// `sqlite:///tmp/…/watchpost.db` or `postgres://…`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The directory that the SQLite file is in; none on PostgreSQL.
    pub fn directory(&self) -> Option<&Path> {
        match &self.home {
            Home::Directory(directory) => Some(directory.path()),
            Home::Server { .. } | Home::Elsewhere => None,
        }
    }

    /// A pool of its own, for what a test does beside the server.
    pub async fn connect(&self) -> DatabaseConnection {
        connect(&self.url).await.expect("a connection to the test's database")
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let Home::Server { database } = &self.home else {
            return;
        };
        let drop = format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)");
        // In a thread, because a runtime may not wait inside another.
        let dropping = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                execute(&Server::get().await.url, &drop).await.ok();
            });
        });
        // The private server goes with the process; another one would keep what is left.
        if std::env::var_os(SERVER_VARIABLE).is_some() {
            dropping.join().ok();
        }
    }
}

/// The bytes of a migrated SQLite file.
async fn migrated_file() -> Vec<u8> {
    let database = TestDatabase::empty(Backend::Sqlite).await;
    migrate(&database.url).await.expect("migrations that apply");
    let directory = database.directory().expect("a database in a file");
    std::fs::read(directory.join("watchpost.db")).expect("the file that was migrated")
}

async fn migrate(url: &str) -> Result<(), DbErr> {
    let db = connect(url).await?;
    Migrator::up(&db, None).await?;
    db.close().await
}

async fn connect(url: &str) -> Result<DatabaseConnection, DbErr> {
    // SQLite has one writer, and a test that waits for itself would wait for ever.
    let connections = if url.starts_with("sqlite:") { 1 } else { 4 };
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(connections)
        .sqlx_logging(false)
        // As in the server: a pool that looks for old connections may hang.
        .idle_timeout(None)
        .max_lifetime(None);
    // A large future, which every test would carry.
    Box::pin(Database::connect(options)).await
}

fn sqlite_url(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

/// Opens a connection for one statement: an open one would belong to the runtime of the
/// test that opened it, and every test has another.
async fn execute(url: &str, statement: &str) -> Result<(), DbErr> {
    let db = connect(url).await?;
    db.execute_unprepared(statement).await?;
    db.close().await
}

fn new_name() -> String {
    format!("{PREFIX}{}", Uuid::now_v7().simple())
}

/// The PostgreSQL server that the tests of this process share.
struct Server {
    url: String,
    template: OnceCell<String>,
    /// None if the server is somebody else's.
    _cluster: Option<Cluster>,
}

impl Server {
    async fn get() -> &'static Self {
        static SERVER: OnceCell<Server> = OnceCell::const_new();
        SERVER.get_or_init(Self::find).await
    }

    async fn find() -> Self {
        let (url, cluster) = if let Some(url) = std::env::var_os(SERVER_VARIABLE) {
            (url.to_string_lossy().into_owned(), None)
        } else {
            let cluster = Cluster::start().await;
            (cluster.url("postgres"), Some(cluster))
        };
        let server = Self { url, template: OnceCell::const_new(), _cluster: cluster };
        server
            .sweep()
            .await
            .unwrap_or_else(|error| panic!("no test database can be made on the server of {SERVER_VARIABLE}: {error}"));
        server
    }

    /// The name of a migrated database that nobody is connected to.
    async fn template(&self) -> &str {
        self.template.get_or_init(async || self.make_template().await.expect("migrations that apply")).await
    }

    async fn make_template(&self) -> Result<String, DbErr> {
        let template = new_name();
        let create = format!("CREATE DATABASE {template} TEMPLATE template0");
        execute(&self.url, &create).await?;
        migrate(&self.url_of(&template)).await?;
        Ok(template)
    }

    fn url_of(&self, database: &str) -> String {
        let (address, parameters) = match self.url.split_once('?') {
            Some((address, parameters)) => (address, format!("?{parameters}")),
            None => (self.url.as_str(), String::new()),
        };
        let (server, _) = address.rsplit_once('/').expect("a URL that names a database");
        format!("{server}/{database}{parameters}")
    }

    /// Drops what earlier tests left behind: the templates, and all that a killed one had.
    async fn sweep(&self) -> Result<(), DbErr> {
        let db = connect(&self.url).await?;
        let names = format!("SELECT datname FROM pg_database WHERE datname LIKE '{PREFIX}%'");
        let names = db.query_all_raw(Statement::from_string(DbBackend::Postgres, names)).await?;
        let oldest = Uuid::now_v7().as_u128() >> 80;
        let oldest = oldest.saturating_sub(LEFTOVER.as_millis());
        for name in names {
            let name: String = name.try_get("", "datname")?;
            let made = name.strip_prefix(PREFIX).and_then(|id| Uuid::try_parse(id).ok());
            if made.is_some_and(|made| made.as_u128() >> 80 < oldest) {
                let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                db.execute_unprepared(&drop).await?;
            }
        }
        db.close().await
    }
}
