//! Every setting: a flag, a `WATCHPOST_…` variable, or a line of a TOML file, in this order of precedence.
//!
//! Nothing else reads the environment.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{
    ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
    error::ErrorKind,
};
use http::Uri;

use self::values::{between, database_url, host, listen, log_filter, server, server_uri};
use crate::{db, feed::retention::Retention, gpu::Tiers};

mod values;

/// The subcommand that has settings of its own.
const AGENT: &str = "agent";

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "watchpost",
    version,
    about = "The operations backend of an AI camera system, as one gRPC service.",
    after_help = "Every setting can also be given as a variable (named in brackets) or in the TOML file that --config \
                  names, under the name of its flag with underscores. A flag beats a variable, a variable beats the file.",
    disable_help_subcommand = true,
    allow_negative_numbers = true
)]
pub struct Cli {
    /// What to do; `serve` if nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to do it.
    #[command(flatten)]
    pub settings: Settings,
}

/// What the process is to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Serve (the default)
    Serve,
    /// Sample the GPUs of this host, and report them to a server elsewhere; needs no database
    Agent {
        /// The server to report to: `HOST:PORT` or `http://HOST:PORT`; required
        #[arg(long, value_name = "URL", env = "WATCHPOST_SERVER", value_parser = server_uri)]
        server: Option<Uri>,
        /// How many samples to keep while the server is away, 1 to 1000000; none longer than ten minutes
        #[arg(
            long, value_name = "NUMBER", env = "WATCHPOST_REPORT_BUFFER", default_value = "20000",
            value_parser = clap::value_parser!(u32).range(1..=1_000_000)
        )]
        report_buffer: u32,
    },
    /// Change the schema of the database, or tell its state
    Migrate {
        /// Which way
        #[command(subcommand)]
        direction: Migrate,
    },
    /// Show the GPUs and the alerts of a running server in the terminal, live
    Top {
        /// The server: `HOST:PORT` or `http://HOST:PORT`
        #[arg(
            long, value_name = "URL", env = "WATCHPOST_SERVER",
            default_value = "http://127.0.0.1:50051", value_parser = server
        )]
        server: String,
    },
}

/// What to do with the schema.
#[derive(Debug, Clone, Subcommand)]
pub enum Migrate {
    /// Apply every migration that is missing; serving does so by itself
    Up,
    /// Take back the last migrations, with the data in what they made
    Down {
        /// How many migrations to take back
        steps: u32,
        /// Really do it
        #[arg(long)]
        yes: bool,
    },
    /// List the migrations, and which of them are applied
    Status,
}

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

    /// The database: `sqlite://PATH` or `postgres://USER:PASSWORD@HOST/NAME` [default: watchpost.db in the data folder]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "WATCHPOST_DATABASE_URL",
        hide_env_values = true
    )]
    pub database_url: Option<String>,

    /// How many connections to PostgreSQL to open at most, 4 to 1000
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

    /// How many watches may be open at once, 1 to 1000000
    #[arg(
        long, global = true, value_name = "NUMBER", env = "WATCHPOST_MAX_WATCHES", default_value = "10000",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_watches: u32,

    /// The largest request to accept, in bytes, 65536 to 268435456
    #[arg(
        long, global = true, value_name = "BYTES", env = "WATCHPOST_MAX_MESSAGE_SIZE", default_value = "4194304",
        value_parser = clap::value_parser!(u32).range(65_536..=268_435_456)
    )]
    pub max_message_size: u32,

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

    /// How long calls may take to end at shutdown, 0s to 1h
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

    /// How long and how many changes the feed keeps.
    pub fn feed_retention(&self) -> Retention {
        Retention {
            kept: self.feed_retention,
            max_changes: self.feed_max_changes,
        }
    }

    /// How often calls into the driver are made, and what they may cost.
    pub fn tiers(&self) -> Tiers {
        Tiers {
            budget: self.gpu_budget,
            ..Default::default()
        }
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

/// What ends the process before it has begun.
#[derive(Debug)]
pub enum Stop {
    /// Something to print on standard output: the help, the version.
    Print(String),
    /// A setting that is wrong, in one line.
    Wrong(String),
}

/// Reads the command line, the environment and the file.
pub fn read(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone> + Clone,
) -> Result<Cli, Stop> {
    let command = Cli::command();
    let cli = parse(command.clone(), args.clone())?;
    let Some(path) = &cli.settings.config else {
        return Ok(cli);
    };
    let wrong =
        |problem: String| Stop::Wrong(format!("setting `config`: {}: {problem}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let file: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| wrong(format!("it is not TOML: {}", error.message())))?;
    parse(with_defaults(command, file).map_err(wrong)?, args)
}

/// Puts the settings of the file in the place of the defaults, so that they are checked as flags are.
fn with_defaults(mut command: clap::Command, file: toml::Table) -> Result<clap::Command, String> {
    let names = |command: &clap::Command| -> Vec<_> {
        let arguments = command.get_arguments();
        arguments.map(|arg| arg.get_id().to_string()).collect()
    };
    let known = names(&command);
    let of_agents = command
        .find_subcommand(AGENT)
        .map(names)
        .unwrap_or_default();
    for (name, value) in file {
        let of_all = known.contains(&name);
        if name == "config" || !of_all && !of_agents.contains(&name) {
            return Err(format!("`{name}` is not a setting"));
        }
        let value = match value {
            toml::Value::String(value) => value,
            toml::Value::Integer(value) => value.to_string(),
            toml::Value::Boolean(value) => value.to_string(),
            toml::Value::Float(_)
            | toml::Value::Datetime(_)
            | toml::Value::Array(_)
            | toml::Value::Table(_) => {
                return Err(format!("`{name}` must be a text or a whole number"));
            }
        };
        let set = |arg: clap::Arg| arg.default_value(value).action(ArgAction::Set);
        command = if of_all {
            command.mut_arg(name, set)
        } else {
            command.mut_subcommand(AGENT, |agent| agent.mut_arg(name, set))
        };
    }
    Ok(command)
}

fn parse(
    command: clap::Command,
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<Cli, Stop> {
    let stop = |error: clap::Error| {
        let kind = error.kind();
        if matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            return Stop::Print(error.render().to_string());
        }
        if kind == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            return Stop::Wrong("a subcommand is missing: try --help".to_string());
        }
        Stop::Wrong(one_line(&error.render().to_string()))
    };
    let matches = command.try_get_matches_from(args).map_err(stop)?;
    let cli = Cli::from_arg_matches(&matches).map_err(stop)?;
    if let Some(Err(problem)) = cli.settings.database_url.as_deref().map(database_url) {
        let name = "invalid value for '--database-url <URL>'";
        return Err(Stop::Wrong(format!("{name}: {problem}")));
    }
    if cli.settings.gpu_rollup_retention < cli.settings.gpu_stats_retention {
        let name = "invalid value for '--gpu-rollup-retention <TIME>'";
        let problem = "it must not be shorter than --gpu-stats-retention";
        return Err(Stop::Wrong(format!("{name}: {problem}")));
    }
    Ok(cli)
}

/// The first paragraph of an error of clap, without its line breaks.
fn one_line(text: &str) -> String {
    let text = text.trim_start_matches("error: ");
    let paragraph: Vec<_> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let possible = text
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("[possible values"));
    let mut line = paragraph.join(" ");
    if let Some(possible) = possible.filter(|possible| !line.contains(possible)) {
        line = format!("{line} {possible}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(args: &[&str]) -> String {
        match read(["watchpost"].iter().chain(args).copied()) {
            Err(Stop::Wrong(problem)) => problem,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_good() {
        let cli = read(["watchpost"]).unwrap();
        assert_eq!(
            cli.settings.database().url,
            "sqlite://./watchpost-data/watchpost.db"
        );
        assert_eq!(cli.settings.listen, "127.0.0.1:50051");
        assert_eq!(cli.settings.metrics_listen, None);
    }

    #[test]
    fn a_bad_setting_is_named_in_one_line() {
        for (args, name) in [
            (&["--listen", "nowhere"][..], "--listen"),
            (&["--listen", "host:99999"], "--listen"),
            (&["--metrics-listen", "9400"], "--metrics-listen"),
            (&["--metrics-listen", ":9400"], "--metrics-listen"),
            (&["--database-url", "mysql://x"], "--database-url"),
            (&["--database-url", "sqlite://:memory:"], "--database-url"),
            (&["--database-connections", "1"], "--database-connections"),
            (&["--sqlite-synchronous", "off"], "--sqlite-synchronous"),
            (&["--gpu-interval", "1ms"], "--gpu-interval"),
            (&["--gpu-stats-retention", "59m"], "--gpu-stats-retention"),
            (&["--gpu-rollup-retention", "29d"], "--gpu-rollup-retention"),
            (&["--log", "a=b=c"], "--log"),
            (&["--max-watches", "-1"], "--max-watches"),
            (&["--no-such-setting", "1"], "--no-such-setting"),
            (&["nonsense"], "nonsense"),
            (&["migrate", "down"], "STEPS"),
            (&["top", "--server", "host"], "--server"),
            (&["agent", "--server", "https://host:1"], "--server"),
            (&["agent", "--server", "http://host"], "--server"),
            (&["agent", "--server", "http://u:p@host:1"], "--server"),
            (&["agent", "--server", "http://host:1/path"], "--server"),
        ] {
            let problem = wrong(args);
            assert!(
                problem.contains(name) && !problem.contains('\n'),
                "{args:?}: {problem}"
            );
        }
        assert!(!wrong(&["--database-url", "mysql://u:secret@h/d"]).contains("secret"));
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("watchpost.toml");
        let config = path.to_str().unwrap();
        std::fs::write(
            &path,
            "listen = \"127.0.0.1:1\"\nmax_watches = 7\ngpu_interval = \"2s\"\n",
        )
        .unwrap();
        let settings = read(["watchpost", "--config", config, "--listen", "127.0.0.1:2"])
            .unwrap()
            .settings;
        assert_eq!(
            (settings.listen.as_str(), settings.max_watches),
            ("127.0.0.1:2", 7)
        );
        assert_eq!(settings.gpu_interval, Duration::from_secs(2));
        std::fs::write(&path, "server = \"http://h:1\"\nreport_buffer = 7\n").unwrap();
        let cli = read(["watchpost", "agent", "--config", config]).unwrap();
        match cli.command {
            Some(Command::Agent {
                server: Some(server),
                report_buffer,
            }) => assert_eq!(
                (server.to_string().as_str(), report_buffer),
                ("http://h:1/", 7)
            ),
            other => panic!("{other:?}"),
        }
        assert!(read(["watchpost", "--config", config]).is_ok());
        for (text, name) in [
            ("nope = 1", "nope"),
            ("listen = 1.5", "listen"),
            ("listen = \"x\"", "--listen"),
            ("config = \"x\"", "config"),
            ("= x", "TOML"),
        ] {
            std::fs::write(&path, text).unwrap();
            assert!(wrong(&["--config", config]).contains(name), "{text}");
        }
        assert!(wrong(&["--config", "/no/such/file"]).contains("config"));
    }
}
