//! Sources of settings: the command line, variables and the file. Errors name the source of an
//! invalid value.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use clap::{Arg, Command, builder::Resettable};

/// Arguments of the process, and the settings file once read.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) arguments: Vec<OsString>,
    pub(super) file: Option<File>,
}

/// File of settings, in TOML.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    /// Line numbers by name of the setting.
    lines: HashMap<String, usize>,
}

impl File {
    /// Reads a TOML file and the lines of its settings. Errors are a single line.
    pub(super) fn read(path: &Path) -> Result<(toml::Table, Self), String> {
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        let line = |at: usize| text[..at].matches('\n').count() + 1;
        let syntax_error = |error: toml::de::Error| {
            let at = error.span().map_or(1, |span| line(span.start));
            let message = error.message().replace('\n', " ");
            format!("line {at}: invalid TOML: {message}")
        };
        let table: toml::Table = text.parse().map_err(syntax_error)?;
        let entries = toml::de::DeTable::parse(&text).map_err(syntax_error)?;
        let lines = entries.get_ref().iter().map(|(name, _)| (name.get_ref().to_string(), line(name.span().start)));
        let file = Self { path: path.to_path_buf(), lines: lines.collect() };
        Ok((table, file))
    }

    /// Returns the line number of a setting.
    pub(super) fn line(&self, name: &str) -> usize {
        self.lines.get(name).copied().unwrap_or(1)
    }
}

impl Sources {
    /// Describes the source of a value for the end of an error: ` (from the variable
    /// WATCHPOST_LISTEN)`. Empty without a source.
    ///
    /// The argument is identified by its text in clap, such as `--listen <HOST:PORT>`, or by its
    /// id.
    pub(super) fn describe(&self, command: &Command, argument: &str) -> String {
        // An argument has its text only in a built command.
        let mut command = command.clone();
        command.build();
        let Some(arg) = find(&command, argument) else {
            return String::new();
        };
        let flag = arg.get_long().map(|long| format!("--{long}"));
        let is_flag = |argument_text: &OsString| {
            let argument_text = argument_text.to_string_lossy();
            let name = argument_text.split_once('=').map_or(&*argument_text, |(name, _)| name);
            flag.as_deref() == Some(name)
        };
        if self.arguments.iter().any(is_flag) {
            return " (from the command line)".into();
        }
        if let Some(name) = arg.get_env().filter(|name| is_set(name)) {
            return format!(" (from the variable {})", name.to_string_lossy());
        }
        let name = arg.get_id().as_str();
        match &self.file {
            Some(file) if file.lines.contains_key(name) => {
                format!(" (from {}, line {})", file.path.display(), file.line(name))
            }
            _ => String::new(),
        }
    }
}

fn find<'a>(command: &'a Command, argument: &str) -> Option<&'a Arg> {
    let mut arguments = command.get_arguments();
    let direct = arguments.find(|arg| arg.get_id().as_str() == argument || arg.to_string() == argument);
    direct.or_else(|| command.get_subcommands().find_map(|sub| find(sub, argument)))
}

/// Treats empty variables as unset, in the command and all its subcommands.
pub(super) fn without_empty_variables(command: Command) -> Command {
    let mut command = command.mut_args(|arg| match arg.get_env() {
        Some(name) if is_empty(name) => arg.env(Resettable::Reset),
        _ => arg,
    });
    let names: Vec<_> = command.get_subcommands().map(|sub| sub.get_name().to_string()).collect();
    for name in names {
        command = command.mut_subcommand(name, without_empty_variables);
    }
    command
}

fn is_set(variable: &OsStr) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

fn is_empty(variable: &OsStr) -> bool {
    std::env::var_os(variable).is_some_and(|value| value.is_empty())
}
