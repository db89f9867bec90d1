//! The settings of the process.

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

/// The settings. All have defaults.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// A TOML file with settings
    #[arg(long, global = true, value_name = "FILE", env = "WATCHPOST_CONFIG")]
    pub config: Option<PathBuf>,

    /// Where to listen; port 0 takes a free one and says which
    #[arg(
        long, global = true, value_name = "HOST:PORT", env = "WATCHPOST_LISTEN",
        default_value = "127.0.0.1:50051", value_parser = listen
    )]
    pub listen: String,

    /// Where to serve metrics and health by HTTP, without TLS or login; port 0 takes a free one and says which
    /// [default: nowhere]
    #[arg(
        long, global = true, value_name = "HOST:PORT", env = "WATCHPOST_METRICS_LISTEN",
        value_parser = listen
    )]
    pub metrics_listen: Option<String>,

    /// The folder for what Watchpost keeps on disk
    #[arg(
        long,
        global = true,
        value_name = "FOLDER",
        env = "WATCHPOST_DATA_DIR",
        default_value = "./watchpost-data"
    )]
    pub data_dir: PathBuf,

    /// The database: `sqlite://PATH` or `postgres://USER@HOST/NAME` [default: watchpost.db in the data folder]. A password
    /// does not belong on the command line, which every user can read: see --database-url-file, or name a password file in
    /// PGPASSFILE
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "WATCHPOST_DATABASE_URL",
        hide_env_values = true
    )]
    pub database_url: Option<String>,

    /// A file with the URL of the database, which may hold a password: `postgres://USER:PASSWORD@HOST/NAME`
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "WATCHPOST_DATABASE_URL_FILE"
    )]
    pub database_url_file: Option<PathBuf>,

    /// Number of connections to PostgreSQL that are open at most, 4 to 1000: 3 of 8 for jobs and the feed, 3 of 16 for searches
    #[arg(
        long, global = true, value_name = "NUMBER", env = "WATCHPOST_DATABASE_CONNECTIONS",
        default_value = "16", value_parser = clap::value_parser!(u32).range(4..=1000)
    )]
    pub database_connections: u32,

    /// When a commit on SQLite is on the disk: before it is answered (full) or a moment later (normal)
    #[arg(
        long,
        global = true,
        value_name = "MODE",
        env = "WATCHPOST_SQLITE_SYNCHRONOUS",
        default_value = "full"
    )]
    pub sqlite_synchronous: Synchronous,

    /// How much to log to standard error: a level (error, warn, info, debug, trace), or directives such as
    /// `info,watchpost::feed=debug`
    #[arg(
        long, global = true, value_name = "FILTER", env = "WATCHPOST_LOG", default_value = "info,sea_orm_migration=warn",
        value_parser = log_filter
    )]
    pub log: String,

    /// The time zone database to use, a folder of `TZif` files, whatever its version [default: the folder that TZDIR names;
    /// else the newer of the system's database and the embedded one]
    #[arg(
        long,
        global = true,
        value_name = "FOLDER",
        env = "WATCHPOST_TIME_ZONE_DIR"
    )]
    pub time_zone_dir: Option<PathBuf>,

    /// How often to sample the GPUs, 100ms to 1h
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_GPU_INTERVAL", default_value = "1s",
        value_parser = between::<100, 3_600_000>
    )]
    pub gpu_interval: Duration,

    /// How long calls into the driver may take for one GPU in a second, 1ms to 1s: what is too dear is asked less often
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_GPU_BUDGET", default_value = "5ms",
        value_parser = between::<1, 1_000>
    )]
    pub gpu_budget: Duration,

    /// The NVML library to load [default: libnvidia-ml.so.1, wherever the system finds it]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "WATCHPOST_NVML_LIBRARY"
    )]
    pub nvml_library: Option<PathBuf>,

    /// How long GPU samples are kept as they were taken, 1h to 3650d
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_GPU_STATS_RETENTION", default_value = "30d",
        value_parser = between::<3_600_000, 315_360_000_000>
    )]
    pub gpu_stats_retention: Duration,

    /// How long they are kept minute by minute, 1h to 3650d, not shorter than as they were taken
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_GPU_ROLLUP_RETENTION", default_value = "400d",
        value_parser = between::<3_600_000, 315_360_000_000>
    )]
    pub gpu_rollup_retention: Duration,

    /// The kernel log, where XID errors of GPUs are read
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "WATCHPOST_KERNEL_LOG",
        default_value = "/dev/kmsg",
        hide = true
    )]
    pub kernel_log: PathBuf,

    /// Where the kernel tells whether GPUs sleep
    #[arg(
        long,
        global = true,
        value_name = "FOLDER",
        env = "WATCHPOST_SYSFS",
        default_value = "/sys",
        hide = true
    )]
    pub sysfs: PathBuf,

    /// The name of this host in GPU stats [default: the system's]
    #[arg(long, global = true, value_name = "NAME", env = "WATCHPOST_HOST", value_parser = host)]
    pub host: Option<String>,

    /// The file with the key that encrypts the secrets of notification channels, of mode 600; all processes on one database
    /// need the same [default: secret.key in the data folder, made when it is first needed]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "WATCHPOST_SECRET_KEY_FILE"
    )]
    pub secret_key_file: Option<PathBuf>,

    /// Networks beyond the public internet that notifications may be sent to, such as 10.0.0.0/8, parted by commas
    /// [default: none]
    #[arg(
        long, global = true, value_name = "NETWORKS", env = "WATCHPOST_NOTIFICATION_NETWORKS",
        value_delimiter = ',', value_parser = network
    )]
    pub notification_networks: Vec<IpNet>,

    /// What webhooks name as their source: a URI, or a part of one
    #[arg(
        long, global = true, value_name = "URI", env = "WATCHPOST_NOTIFICATION_SOURCE", default_value = "watchpost",
        value_parser = source
    )]
    pub notification_source: String,

    /// How long to wait before a delivery that has failed is tried again, 10ms to 1h; then four times as long each time
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_NOTIFICATION_RETRY", default_value = "5s",
        value_parser = between::<10, 3_600_000>
    )]
    pub notification_retry: Duration,

    /// How long the change feed is kept for watches to resume from, 1m to 365d
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_FEED_RETENTION", default_value = "7d",
        value_parser = between::<60_000, 31_536_000_000>
    )]
    pub feed_retention: Duration,

    /// How many changes the feed keeps at most, 1000 to 1000000000
    #[arg(
        long, global = true, value_name = "NUMBER", env = "WATCHPOST_FEED_MAX_CHANGES", default_value = "10000000",
        value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000)
    )]
    pub feed_max_changes: u64,

    /// How long jobs are kept that have completed, 0s to 3650d; 0s keeps them for ever
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_JOB_RETENTION_COMPLETED", default_value = "7d",
        value_parser = between::<0, 315_360_000_000>
    )]
    pub job_retention_completed: Duration,

    /// How long jobs are kept that have failed for good and are no dead letters, 0s to 3650d; 0s keeps them for ever
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_JOB_RETENTION_FAILED", default_value = "30d",
        value_parser = between::<0, 315_360_000_000>
    )]
    pub job_retention_failed: Duration,

    /// How long dead letters are kept, 0s to 3650d; 0s keeps them for ever
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_JOB_RETENTION_DEAD", default_value = "90d",
        value_parser = between::<0, 315_360_000_000>
    )]
    pub job_retention_dead: Duration,

    /// How long jobs are kept that were cancelled, 0s to 3650d; 0s keeps them for ever
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_JOB_RETENTION_CANCELLED", default_value = "7d",
        value_parser = between::<0, 315_360_000_000>
    )]
    pub job_retention_cancelled: Duration,

    /// Number of watches and streams of workers that may be open at once, 1 to 1000000
    #[arg(
        long, global = true, value_name = "NUMBER", env = "WATCHPOST_MAX_WATCHES", default_value = "10000",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_watches: u32,

    /// How many connections may be open at once, 16 to 1000000; fewer if the system allows fewer open files. More are
    /// closed at once, and so is one whose client does not begin with HTTP/2 within 10s
    #[arg(
        long, global = true, value_name = "NUMBER", env = "WATCHPOST_MAX_CONNECTIONS", default_value = "10000",
        value_parser = clap::value_parser!(u32).range(16..=1_000_000)
    )]
    pub max_connections: u32,

    /// How many calls may be open at once on one connection, 1 to 100000; clients keep more waiting
    #[arg(
        long, global = true, value_name = "NUMBER", env = "WATCHPOST_MAX_CONNECTION_STREAMS", default_value = "200",
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub max_connection_streams: u32,

    /// Number of calls that may be open at once on all connections together, streams included, 1 to 10000000; health checks are
    /// answered beyond that
    #[arg(
        long, global = true, value_name = "NUMBER", env = "WATCHPOST_MAX_CALLS", default_value = "12000",
        value_parser = clap::value_parser!(u32).range(1..=10_000_000)
    )]
    pub max_calls: u32,

    /// Time within which a request must arrive whole, 1s to 1h; in a stream of requests, each message from its first byte on
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_MESSAGE_TIMEOUT", default_value = "30s",
        value_parser = between::<1_000, 3_600_000>
    )]
    pub message_timeout: Duration,

    /// Memory for requests that have not arrived whole, in bytes, 4194304 to 68719476736; beyond it those that have stalled
    /// are ended first
    #[arg(
        long, global = true, value_name = "BYTES", env = "WATCHPOST_UNFINISHED_MEMORY", default_value = "25165824",
        value_parser = clap::value_parser!(u64).range(4_194_304..=68_719_476_736)
    )]
    pub unfinished_memory: u64,

    /// Memory for snapshots that watches begin with, until clients have read them, in bytes, 1048576 to 68719476736
    #[arg(
        long, global = true, value_name = "BYTES", env = "WATCHPOST_SNAPSHOT_MEMORY", default_value = "67108864",
        value_parser = clap::value_parser!(u64).range(1_048_576..=68_719_476_736)
    )]
    pub snapshot_memory: u64,

    /// The largest request to accept, in bytes, 65536 to 268435456
    #[arg(
        long, global = true, value_name = "BYTES", env = "WATCHPOST_MAX_MESSAGE_SIZE", default_value = "4194304",
        value_parser = clap::value_parser!(u32).range(65_536..=268_435_456)
    )]
    pub max_message_size: u32,

    /// Memory that requests under way may take in all once they are decoded, in bytes, 67108864 to 68719476736
    #[arg(
        long, global = true, value_name = "BYTES", env = "WATCHPOST_REQUEST_MEMORY", default_value = "268435456",
        value_parser = clap::value_parser!(u64).range(67_108_864..=68_719_476_736)
    )]
    pub request_memory: u64,

    /// How often to ask silent connections whether they are alive, 1s to 1h
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_KEEPALIVE_INTERVAL", default_value = "30s",
        value_parser = between::<1_000, 3_600_000>
    )]
    pub keepalive_interval: Duration,

    /// How long to wait for the answer to that, 1s to 1h
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_KEEPALIVE_TIMEOUT", default_value = "10s",
        value_parser = between::<1_000, 3_600_000>
    )]
    pub keepalive_timeout: Duration,

    /// How long calls may take to end at shutdown, 0s to 1h; closing takes at most 1s more
    #[arg(
        long, global = true, value_name = "TIME", env = "WATCHPOST_SHUTDOWN_GRACE", default_value = "10s",
        value_parser = between::<0, 3_600_000>
    )]
    pub shutdown_grace: Duration,
}

/// See [`db::Synchronous`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Synchronous {
    /// Before it is answered
    Full,
    /// A moment later: a power cut may take the last commits, a crash of the process takes none
    Normal,
}

impl Settings {
    /// Which database, and how to treat it.
    pub fn database(&self) -> db::Settings {
        let file = || {
            let path = self.data_dir.join("watchpost.db").display().to_string();
            // What would end the path in a URL, or begin an escape, is escaped.
            let path = path
                .replace('%', "%25")
                .replace('?', "%3F")
                .replace('#', "%23");
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

    /// Uses the time zone database that the settings name, if they name one.
    pub fn use_time_zones(&self) -> Result<(), String> {
        let named = self.time_zone_dir.clone();
        let named = named.map(|folder| ("setting `--time-zone-dir`", folder));
        let of_system = std::env::var_os("TZDIR").filter(|folder| !folder.is_empty());
        let of_system = of_system.map(|folder| ("variable `TZDIR`", PathBuf::from(folder)));
        let Some((name, folder)) = named.or(of_system) else {
            return Ok(());
        };
        time_zones::use_folder(&folder).map_err(|problem| format!("{name}: {problem}"))
    }

    /// How long and how many changes the feed keeps.
    pub fn feed_retention(&self) -> Retention {
        Retention {
            kept: self.feed_retention,
            max_changes: self.feed_max_changes,
        }
    }

    /// How long jobs are kept that have come to their end.
    pub fn job_retention(&self) -> jobs::store::retention::JobRetention {
        jobs::store::retention::JobRetention {
            completed: self.job_retention_completed,
            failed: self.job_retention_failed,
            dead: self.job_retention_dead,
            cancelled: self.job_retention_cancelled,
        }
    }

    /// How often calls into the driver are made, and what they may cost.
    pub fn tiers(&self) -> Tiers {
        Tiers {
            budget: self.gpu_budget,
            ..Default::default()
        }
    }

    /// What sends notifications.
    pub fn senders(&self) -> Senders {
        Senders::new(
            self.notification_source.clone(),
            Targets::new(&self.notification_networks),
            self.keyring(),
        )
    }

    /// The keys that encrypt the secrets of channels.
    pub fn keyring(&self) -> Keyring {
        let key = self.secret_key_file.clone();
        Keyring::new(key.unwrap_or_else(|| self.data_dir.join("secret.key")))
    }

    /// The name of this host.
    pub fn host(&self) -> String {
        let system = || {
            gethostname::gethostname()
                .to_string_lossy()
                .chars()
                .take(255)
                .collect()
        };
        self.host.clone().unwrap_or_else(system)
    }
}
