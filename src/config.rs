//! Settings: a flag, a `WATCHPOST_…` variable, or an entry of a TOML file, in this order of
//! precedence.
//!
//! No other module reads the environment.

use std::ffi::OsString;

use clap::{
    ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};
use http::Uri;
use uuid::Uuid;

pub use self::settings::{Settings, Synchronous};
use self::{
    source::Sources,
    values::{database_url, server, server_uri},
};
use crate::time_zones;

mod settings;
mod source;
mod values;

/// Last paragraph of the help.
const PRECEDENCE_HELP: &str = "Every setting can also be given as a variable (named in brackets) or in the TOML file that --config \
                          names, under the name of its flag with underscores. A flag beats a variable, a variable beats the file. \
                          An empty variable counts as unset.";

/// Parsed command line: command and settings.
#[derive(Debug, Parser)]
#[command(
    name = "watchpost",
    version,
    about = "The operations backend of an AI camera system, as one gRPC service.",
    disable_help_subcommand = true,
    allow_negative_numbers = true
)]
pub struct Cli {
    /// Command; `serve` if absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings of all commands.
    #[command(flatten)]
    pub settings: Settings,
}

/// Command of the process.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Run the server (the default)
    Serve,
    /// Sample the GPUs of this host and report them to a remote server; needs no database
    Agent {
        /// Server that receives the reports: `HOST:PORT` or `http://HOST:PORT`; required
        #[arg(long, value_name = "URL", env = "WATCHPOST_SERVER", value_parser = server_uri)]
        server: Option<Uri>,
        /// Maximum number of samples buffered while the server is unreachable, 1 to 1000000;
        /// samples older than ten minutes are dropped
        #[arg(
            long, value_name = "NUMBER", env = "WATCHPOST_REPORT_BUFFER", default_value = "20000",
            value_parser = clap::value_parser!(u32).range(1..=1_000_000)
        )]
        report_buffer: u32,
    },
    /// Change the schema of the database, or show its state
    Migrate {
        /// Direction of the migration
        #[command(subcommand)]
        direction: Migrate,
    },
    /// Show, rotate or replace the keys that encrypt the secrets of notification channels
    Keys {
        /// Action on the keys
        #[command(subcommand)]
        action: KeyAction,
    },
    /// Show jobs of a running server
    Jobs {
        /// Address of the server: `HOST:PORT` or `http://HOST:PORT`
        #[arg(
            long, global = true, value_name = "URL", env = "WATCHPOST_SERVER",
            default_value = "http://127.0.0.1:50051", value_parser = server
        )]
        server: String,
        /// View of the jobs
        #[command(subcommand)]
        view: JobView,
    },
    /// Show the GPUs and alerts of a running server in the terminal, updated live
    Top {
        /// Address of the server: `HOST:PORT` or `http://HOST:PORT`
        #[arg(
            long, value_name = "URL", env = "WATCHPOST_SERVER",
            default_value = "http://127.0.0.1:50051", value_parser = server
        )]
        server: String,
    },
}

/// Views of the jobs of a server.
#[derive(Debug, Clone, Subcommand)]
pub enum JobView {
    /// Follow a job and exit with its result: 0 completed, 1 failed, 2 cancelled or unknown. Shows
    /// a progress bar in a terminal, lines otherwise
    Watch {
        /// Id of the job
        id: Uuid,
        /// Show the log of the job as well
        #[arg(long)]
        logs: bool,
    },
}

/// Actions on the keys of secrets.
#[derive(Debug, Clone, Subcommand)]
pub enum KeyAction {
    /// List the keys of the key file, and the number of channels that use each key
    Status,
    /// Re-encrypt the secrets of all channels with a new key, or finish an interrupted rotation
    Rotate {
        /// Only add the new key to the file, to copy the file to the other hosts of the database
        /// first
        #[arg(long)]
        stage: bool,
    },
    /// Create a new key in place of a lost key; the secrets of all channels must be set again
    Replace {
        /// Confirm the loss of data
        #[arg(long)]
        yes: bool,
    },
}

/// Migration of the schema.
#[derive(Debug, Clone, Subcommand)]
pub enum Migrate {
    /// Apply every missing migration; `serve` does this automatically
    Up,
    /// Revert the last migrations, including the data in their tables
    Down {
        /// Number of migrations to revert
        steps: u32,
        /// Confirm the loss of data
        #[arg(long)]
        yes: bool,
    },
    /// List the migrations and their state, applied or pending
    Status,
}

/// Reason to exit before the command runs.
#[derive(Debug)]
pub enum EarlyExit {
    /// Text for standard output: help or version.
    Print(String),
    /// Invalid setting, described in one line.
    Invalid(String),
}

/// Reads the command line, the environment and the file.
pub fn read(args: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Cli, EarlyExit> {
    let time_zones = time_zones::source();
    let full_command =
        Cli::command().after_help(format!("{PRECEDENCE_HELP}\n\nTime zones, unless a folder is named: {time_zones}."));
    let command = source::without_empty_variables(full_command);
    let mut sources = Sources { arguments: args.into_iter().map(Into::into).collect(), file: None };
    let cli = parse(&command, &sources)?;
    let Some(path) = cli.settings.config else {
        return Ok(cli);
    };
    let wrong = |problem: String| EarlyExit::Invalid(format!("setting `config`: {}: {problem}", path.display()));
    let (table, file) = source::File::read(&path).map_err(wrong)?;
    let command = with_defaults(command, table, &file).map_err(wrong)?;
    sources.file = Some(file);
    parse(&command, &sources)
}

/// Replaces the defaults by the settings of the file, so that file values are checked like flags.
/// Settings of subcommands apply to every subcommand that has them.
fn with_defaults(mut command: clap::Command, table: toml::Table, file: &source::File) -> Result<clap::Command, String> {
    for (name, value) in table {
        let wrong = |problem: &str| format!("line {}: `{name}` {problem}", file.line(&name));
        let find = |command: &clap::Command| {
            let mut arguments = command.get_arguments();
            arguments.find(|arg| arg.get_id() == name.as_str()).map(|arg| arg.get_value_delimiter().is_some())
        };
        let global_setting = find(&command);
        let matching = command.get_subcommands().filter_map(|sub| Some((sub.get_name().to_string(), find(sub)?)));
        let subcommands: Vec<_> = matching.collect();
        let Some(is_list) = global_setting.or_else(|| Some(subcommands.first()?.1)) else {
            return Err(wrong("is not a setting"));
        };
        if name == "config" {
            return Err(wrong("is not a setting of the file"));
        }
        let values = if let toml::Value::Array(values) = &value
            && is_list
        {
            let values: Option<Vec<_>> = values.iter().map(text).collect();
            values.ok_or_else(|| wrong("must be a list of texts"))?
        } else {
            let value = text(&value);
            vec![value.ok_or_else(|| wrong("must be a text, a whole number, true or false"))?]
        };
        let set = |arg: clap::Arg| {
            let action = if is_list { ArgAction::Append } else { ArgAction::Set };
            arg.default_values(values.clone()).action(action)
        };
        if global_setting.is_some() {
            command = command.mut_arg(&name, set);
        } else {
            for (sub, _) in subcommands {
                command = command.mut_subcommand(sub, |sub| sub.mut_arg(&name, set));
            }
        }
    }
    Ok(command)
}

/// Formats a value of the file as on the command line.
fn text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(value) => Some(value.clone()),
        toml::Value::Integer(value) => Some(value.to_string()),
        toml::Value::Boolean(value) => Some(value.to_string()),
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => None,
    }
}

fn parse(command: &clap::Command, sources: &Sources) -> Result<Cli, EarlyExit> {
    let stop = |error: clap::Error| {
        let kind = error.kind();
        if matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            return EarlyExit::Print(error.render().to_string());
        }
        if kind == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            return EarlyExit::Invalid("a subcommand is missing: try --help".to_string());
        }
        let source = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(argument)) if kind == ErrorKind::ValueValidation => {
                sources.describe(command, argument)
            }
            _ => String::new(),
        };
        EarlyExit::Invalid(one_line(&error.render().to_string()) + &source)
    };
    let matches = command.clone().try_get_matches_from(&sources.arguments).map_err(stop)?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(stop)?;
    let wrong = |id: &str, argument: &str, problem: &str| {
        let source = sources.describe(command, id);
        EarlyExit::Invalid(format!("invalid value for '{argument}': {problem}{source}"))
    };
    if let Err(problem) = read_database_url(&mut cli.settings) {
        return Err(wrong("database_url_file", "--database-url-file <FILE>", &problem));
    }
    if let Some(Err(problem)) = cli.settings.database_url.as_deref().map(database_url) {
        return Err(wrong("database_url", "--database-url <URL>", &problem));
    }
    if cli.settings.gpu_rollup_retention < cli.settings.gpu_stats_retention {
        let problem = "it must not be shorter than --gpu-stats-retention";
        let argument = "--gpu-rollup-retention <TIME>";
        return Err(wrong("gpu_rollup_retention", argument, problem));
    }
    Ok(cli)
}

/// Reads the URL of the database from its file, if configured. Errors never repeat the content of
/// the file.
fn read_database_url(settings: &mut Settings) -> Result<(), String> {
    let Some(path) = &settings.database_url_file else {
        return Ok(());
    };
    let wrong = |problem: String| {
        let path = path.display();
        format!("{path}: {problem}")
    };
    if settings.database_url.is_some() {
        return Err(wrong("it must not be set beside --database-url".to_string()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let url = text.trim();
    if url.lines().count() != 1 {
        return Err(wrong("it must hold one line with the URL".to_string()));
    }
    database_url(url).map_err(wrong)?;
    settings.database_url = Some(url.to_string());
    Ok(())
}

/// Returns the first paragraph of a clap error as one line.
fn one_line(text: &str) -> String {
    let text = text.trim_start_matches("error: ");
    let paragraph: Vec<_> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let possible = text.lines().map(str::trim).find(|line| line.starts_with("[possible values"));
    let mut line = paragraph.join(" ");
    if let Some(possible) = possible.filter(|possible| !line.contains(possible)) {
        line = format!("{line} {possible}");
    }
    line
}

#[cfg(test)]
mod tests;
