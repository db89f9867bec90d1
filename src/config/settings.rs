//! Settings of the process, with their defaults and bounds.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::values::{between, host, listen, log_filter, network, source};
use crate::{
    db,
    feed::retention::Retention,
    gpu::Tiers,
    jobs,
    notifications::{Keyring, Senders, Targets},
    time_zones,
};

/// Settings of all commands. Every setting has a default.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// TOML file with settings
    #[arg(long, global = true, value_name = "FILE", env = "WATCHPOST_CONFIG")]
    pub config: Option<PathBuf>,

    /// Address of the gRPC listener; port 0 selects a free port, which is logged
    #[arg(
        long, global = true, value_name = "HOST:PORT", env = "WATCHPOST_LISTEN",
        default_value = "127.0.0.1:50051", value_parser = listen
    )]
    pub listen: String,

    /// Address of the HTTP listener for metrics and health, without TLS or login; port 0 selects a
    /// free port, which is logged [default: disabled]
    #[arg(
        long, global = true, value_name = "HOST:PORT", env = "WATCHPOST_METRICS_LISTEN",
        value_parser = listen
    )]
    pub metrics_listen: Option<String>,

    /// Folder for the data of Watchpost
    #[arg(long, global = true, value_name = "FOLDER", env = "WATCHPOST_DATA_DIR", default_value = "./watchpost-data")]
    pub data_dir: PathBuf,

    /// Address of the database: `sqlite://PATH` or `postgres://USER@HOST/NAME` [default:
    /// watchpost.db in the data folder]. Do not put a password on the command line, where every
    /// user can read the value: use --database-url-file, or a password file named by PGPASSFILE
    #[arg(long, global = true, value_name = "URL", env = "WATCHPOST_DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,

    /// File with the address of the database, which may include a password:
    /// `postgres://USER:PASSWORD@HOST/NAME`
    #[arg(long, global = true, value_name = "FILE", env = "WATCHPOST_DATABASE_URL_FILE")]
    pub database_url_file: Option<PathBuf>,

    /// Maximum number of open connections to PostgreSQL, 4 to 1000: 3 of 8 are used for jobs and
    /// the feed, 3 of 16 for searches
    #[arg(
        long, global = true, value_name = "NUMBER", env = "WATCHPOST_DATABASE_CONNECTIONS",
        default_value = "16", value_parser = clap::value_parser!(u32).range(4..=1000)
    )]
    pub database_connections: u32,

    /// Time at which a commit on SQLite is synced to disk: before the answer (full) or shortly
    /// after (normal)
    #[arg(long, global = true, value_name = "MODE", env = "WATCHPOST_SQLITE_SYNCHRONOUS", default_value = "full")]
    pub sqlite_synchronous: Synchronous,

    /// Log filter for standard error: a level (error, warn, info, debug, trace), or directives such
    /// as `info,watchpost::feed=debug`
    #[arg(
        long, global = true, value_name = "FILTER", env = "WATCHPOST_LOG", default_value = "info,sea_orm_migration=warn",
        value_parser = log_filter
    )]
    pub log: String,

    /// Folder of the time zone database in `TZif` files, used regardless of its version [default:
    /// the folder in TZDIR; otherwise the newer of the system's database and the embedded database]
    #[arg(long, global = true, value_name = "FOLDER", env = "WATCHPOST_TIME_ZONE_DIR")]
    pub time_zone_dir: Option<PathBuf>,

    /// Interval between two GPU samples, 100ms to 1h
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_GPU_INTERVAL", default_value = "1s",
        value_parser = between::<100, 3_600_000>
    )]
    pub gpu_interval: Duration,

    /// Maximum time of driver calls per GPU and second, 1ms to 1s; expensive values are read less
    /// often
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_GPU_BUDGET", default_value = "5ms",
        value_parser = between::<1, 1_000>
    )]
    pub gpu_budget: Duration,

    /// NVML library to load [default: libnvidia-ml.so.1 from the library path of the system]
    #[arg(long, global = true, value_name = "FILE", env = "WATCHPOST_NVML_LIBRARY")]
    pub nvml_library: Option<PathBuf>,

    /// Retention of GPU samples in full resolution, 1h to 3650d
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_GPU_STATS_RETENTION", default_value = "30d",
        value_parser = between::<3_600_000, 315_360_000_000>
    )]
    pub gpu_stats_retention: Duration,

    /// Retention of GPU samples in one-minute resolution, 1h to 3650d; not shorter than
    /// --gpu-stats-retention
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_GPU_ROLLUP_RETENTION", default_value = "400d",
        value_parser = between::<3_600_000, 315_360_000_000>
    )]
    pub gpu_rollup_retention: Duration,

    /// Kernel log with the XID errors of GPUs
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "WATCHPOST_KERNEL_LOG",
        default_value = "/dev/kmsg",
        hide = true
    )]
    pub kernel_log: PathBuf,

    /// Mount point of sysfs, for the power state of GPUs
    #[arg(long, global = true, value_name = "FOLDER", env = "WATCHPOST_SYSFS", default_value = "/sys", hide = true)]
    pub sysfs: PathBuf,

    /// Name of this host in GPU stats [default: host name of the system]
    #[arg(long, global = true, value_name = "NAME", env = "WATCHPOST_HOST", value_parser = host)]
    pub host: Option<String>,

    /// File with the key that encrypts the secrets of notification channels, mode 600; all
    /// processes of a database need the same key [default: secret.key in the data folder, created
    /// at the first use]
    #[arg(long, global = true, value_name = "FILE", env = "WATCHPOST_SECRET_KEY_FILE")]
    pub secret_key_file: Option<PathBuf>,

    /// Networks outside of the public internet to which notifications may be sent, such as
    /// 10.0.0.0/8, separated by commas [default: none]
    #[arg(
        long, global = true, value_name = "NETWORKS", env = "WATCHPOST_NOTIFICATION_NETWORKS",
        value_delimiter = ',', value_parser = network
    )]
    pub notification_networks: Vec<IpNet>,

    /// Value of the attribute `source` in webhooks: a URI or a relative reference
    #[arg(
        long, global = true, value_name = "URI", env = "WATCHPOST_NOTIFICATION_SOURCE", default_value = "watchpost",
        value_parser = source
    )]
    pub notification_source: String,

    /// Pause before the first retry of a failed delivery, 10ms to 1h; each further pause is four
    /// times longer
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_NOTIFICATION_RETRY", default_value = "5s",
        value_parser = between::<10, 3_600_000>
    )]
    pub notification_retry: Duration,

    /// Retention of the change feed, from which watches resume, 1m to 365d
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_FEED_RETENTION", default_value = "7d",
        value_parser = between::<60_000, 31_536_000_000>
    )]
    pub feed_retention: Duration,

    /// Maximum number of changes in the feed, 1000 to 1000000000
    #[arg(
        long, global = true, value_name = "NUMBER", env = "WATCHPOST_FEED_MAX_CHANGES", default_value = "10000000",
        value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000)
    )]
    pub feed_max_changes: u64,

    /// Retention of completed jobs, 0s to 3650d; 0s keeps the jobs for ever
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_JOB_RETENTION_COMPLETED", default_value = "7d",
        value_parser = between::<0, 315_360_000_000>
    )]
    pub job_retention_completed: Duration,

    /// Retention of failed jobs without dead letters, 0s to 3650d; 0s keeps the jobs for ever
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_JOB_RETENTION_FAILED", default_value = "30d",
        value_parser = between::<0, 315_360_000_000>
    )]
    pub job_retention_failed: Duration,

    /// Retention of dead letters, 0s to 3650d; 0s keeps the jobs for ever
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_JOB_RETENTION_DEAD", default_value = "90d",
        value_parser = between::<0, 315_360_000_000>
    )]
    pub job_retention_dead: Duration,

    /// Retention of cancelled jobs, 0s to 3650d; 0s keeps the jobs for ever
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_JOB_RETENTION_CANCELLED", default_value = "7d",
        value_parser = between::<0, 315_360_000_000>
    )]
    pub job_retention_cancelled: Duration,

    /// Maximum number of open watches and worker streams, 1 to 1000000
    #[arg(
        long, global = true, value_name = "NUMBER", env = "WATCHPOST_MAX_WATCHES", default_value = "10000",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_watches: u32,

    /// Maximum number of open connections, 16 to 1000000; less if the system allows fewer open
    /// files. Further connections are closed at once. A connection without an HTTP/2 preface is
    /// closed after 10s
    #[arg(
        long, global = true, value_name = "NUMBER", env = "WATCHPOST_MAX_CONNECTIONS", default_value = "10000",
        value_parser = clap::value_parser!(u32).range(16..=1_000_000)
    )]
    pub max_connections: u32,

    /// Maximum number of open calls per connection, 1 to 100000; clients queue further calls
    #[arg(
        long, global = true, value_name = "NUMBER", env = "WATCHPOST_MAX_CONNECTION_STREAMS", default_value = "200",
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub max_connection_streams: u32,

    /// Maximum number of open calls on all connections, including streams, 1 to 10000000; health
    /// checks have a reserve beyond the limit
    #[arg(
        long, global = true, value_name = "NUMBER", env = "WATCHPOST_MAX_CALLS", default_value = "12000",
        value_parser = clap::value_parser!(u32).range(1..=10_000_000)
    )]
    pub max_calls: u32,

    /// Maximum time for a request to arrive completely, 1s to 1h; in a request stream, for each
    /// message from its first byte
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_MESSAGE_TIMEOUT", default_value = "30s",
        value_parser = between::<1_000, 3_600_000>
    )]
    pub message_timeout: Duration,

    /// Memory for incomplete requests, in bytes, 4194304 to 68719476736; beyond the limit, stalled
    /// requests are ended first
    #[arg(
        long, global = true, value_name = "BYTES", env = "WATCHPOST_UNFINISHED_MEMORY", default_value = "25165824",
        value_parser = clap::value_parser!(u64).range(4_194_304..=68_719_476_736)
    )]
    pub unfinished_memory: u64,

    /// Memory for the snapshots of watches until clients have read them, in bytes, 1048576 to
    /// 68719476736
    #[arg(
        long, global = true, value_name = "BYTES", env = "WATCHPOST_SNAPSHOT_MEMORY", default_value = "67108864",
        value_parser = clap::value_parser!(u64).range(1_048_576..=68_719_476_736)
    )]
    pub snapshot_memory: u64,

    /// Maximum size of a request, in bytes, 65536 to 268435456
    #[arg(
        long, global = true, value_name = "BYTES", env = "WATCHPOST_MAX_MESSAGE_SIZE", default_value = "4194304",
        value_parser = clap::value_parser!(u32).range(65_536..=268_435_456)
    )]
    pub max_message_size: u32,

    /// Memory for all decoded requests together, in bytes, 67108864 to 68719476736
    #[arg(
        long, global = true, value_name = "BYTES", env = "WATCHPOST_REQUEST_MEMORY", default_value = "268435456",
        value_parser = clap::value_parser!(u64).range(67_108_864..=68_719_476_736)
    )]
    pub request_memory: u64,

    /// Interval of keepalive pings on idle connections, 1s to 1h
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_KEEPALIVE_INTERVAL", default_value = "30s",
        value_parser = between::<1_000, 3_600_000>
    )]
    pub keepalive_interval: Duration,

    /// Maximum time for the answer to a keepalive ping, 1s to 1h
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_KEEPALIVE_TIMEOUT", default_value = "10s",
        value_parser = between::<1_000, 3_600_000>
    )]
    pub keepalive_timeout: Duration,

    /// Grace period for running calls at shutdown, 0s to 1h; the process exits at most 1s later
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_SHUTDOWN_GRACE", default_value = "10s",
        value_parser = between::<0, 3_600_000>
    )]
    pub shutdown_grace: Duration,
}

/// Value of the setting for [`db::Synchronous`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Synchronous {
    /// Sync the commit before the answer
    Full,
    /// Sync the commit shortly after the answer; a power cut may lose the last commits, a crash of the process
    /// loses none
    Normal,
}

impl Settings {
    /// Returns the settings of the database.
    pub fn database(&self) -> db::Settings {
        let file = || {
            let path = self.data_dir.join("watchpost.db").display().to_string();
            // Characters that would end the path of a URL or begin an escape are escaped.
            let path = path.replace('%', "%25").replace('?', "%3F").replace('#', "%23");
            format!("sqlite://{path}")
        };
        db::Settings {
            url: self.database_url.clone().unwrap_or_else(file),
            connections: self.database_connections,
            sqlite_synchronous: match self.sqlite_synchronous {
                Synchronous::Full => db::Synchronous::Full,
                Synchronous::Normal => db::Synchronous::Normal,
            },
        }
    }

    /// Applies the time zone folder of the settings or of `TZDIR`, if either is set.
    pub fn use_time_zones(&self) -> Result<(), String> {
        let configured = self.time_zone_dir.clone().map(|folder| ("setting `--time-zone-dir`", folder));
        let from_variable = std::env::var_os("TZDIR")
            .filter(|folder| !folder.is_empty())
            .map(|folder| ("variable `TZDIR`", PathBuf::from(folder)));
        let Some((name, folder)) = configured.or(from_variable) else {
            return Ok(());
        };
        time_zones::use_folder(&folder).map_err(|problem| format!("{name}: {problem}"))
    }

    /// Returns the retention of the change feed.
    pub fn feed_retention(&self) -> Retention {
        Retention { max_age: self.feed_retention, max_changes: self.feed_max_changes }
    }

    /// Returns the retention of finished jobs.
    pub fn job_retention(&self) -> jobs::store::retention::JobRetention {
        jobs::store::retention::JobRetention {
            completed: self.job_retention_completed,
            failed: self.job_retention_failed,
            dead: self.job_retention_dead,
            cancelled: self.job_retention_cancelled,
        }
    }

    /// Returns the frequency and budget of driver calls.
    pub fn tiers(&self) -> Tiers {
        Tiers { budget: self.gpu_budget, ..Default::default() }
    }

    /// Returns the senders of notifications.
    pub fn senders(&self) -> Senders {
        Senders::new(self.notification_source.clone(), Targets::new(&self.notification_networks), self.keyring())
    }

    /// Returns the keys that encrypt the secrets of channels.
    pub fn keyring(&self) -> Keyring {
        let key = self.secret_key_file.clone();
        Keyring::new(key.unwrap_or_else(|| self.data_dir.join("secret.key")))
    }

    /// Returns the name of this host, of at most 255 characters.
    pub fn host(&self) -> String {
        let system = || gethostname::gethostname().to_string_lossy().chars().take(255).collect();
        self.host.clone().unwrap_or_else(system)
    }
}
