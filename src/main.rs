//! Entry point of the command line.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use watchpost::{
    config::{self, Cli, Command, EarlyExit, JobView, KeyAction, Migrate, Settings},
    db::Db,
    error::Chain,
    escape::escape,
    gpu::{self, reporting::agent},
    jobs_watch::{self, Outcome},
    log,
    server::{Server, StartError},
    top,
};

/// Exit code for an invalid setting, `EX_USAGE` of sysexits.h.
const EXIT_INVALID_SETTING: u8 = 64;

/// Exit code for a job that was cancelled or whose result is unknown.
const EXIT_UNFINISHED: u8 = 2;

fn main() -> ExitCode {
    let cli = match config::read(std::env::args_os().collect::<Vec<_>>()) {
        Ok(cli) => cli,
        Err(stop) => return exit_early(stop),
    };
    // Created files are readable by the user only: the database, its log and lock, and keys.
    #[cfg(target_os = "linux")]
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // A log would overwrite the terminal view.
    if !matches!(cli.command, Some(Command::Top { .. } | Command::Jobs { .. })) {
        start_log(&cli.settings);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&StartError::Serve(error.to_string())),
    };
    let code = runtime.block_on(run(cli));
    // Threads blocked in system calls must not delay the exit.
    runtime.shutdown_background();
    code
}

async fn run(cli: Cli) -> ExitCode {
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => serve(&cli.settings).await,
        Command::Agent { server, report_buffer } => {
            let settings = &cli.settings;
            let Some(server) = server else {
                let problem = "setting `--server`: an agent needs a server to report to";
                return exit_early(EarlyExit::Invalid(problem.to_string()));
            };
            let gpus = gpu::Settings {
                library: settings.nvml_library.clone(),
                interval: settings.gpu_interval,
                host: settings.host(),
                detections: gpu::Detections::default(),
                tiers: settings.tiers(),
                kernel_log: Some(settings.kernel_log.clone()),
                sysfs: settings.sysfs.clone(),
            };
            report(agent::Settings { gpus, server, buffer: report_buffer as usize, grace: settings.shutdown_grace })
                .await
        }
        Command::Migrate { direction } => match migrate(&cli.settings, direction).await {
            Ok(code) => code,
            Err(error) => fail(&error),
        },
        Command::Keys { action } => match keys(&cli.settings, action).await {
            Ok(code) => code,
            Err(error) => fail(&error),
        },
        Command::Jobs { server, view: JobView::Watch { id, logs } } => {
            watch_job(jobs_watch::Options { server, id, logs }).await
        }
        Command::Top { server } => show_top(&server).await,
    }
}

/// Serves until a termination signal or a fatal error.
async fn serve(settings: &Settings) -> ExitCode {
    if let Err(problem) = settings.use_time_zones() {
        return exit_early(EarlyExit::Invalid(problem));
    }
    let termination = match listen_for_termination() {
        Ok(signals) => signals,
        Err(error) => return fail(&error),
    };
    let mut server = match Server::start(settings).await {
        Ok(server) => server,
        Err(error) => return fail(&error),
    };
    let failure = tokio::select! {
        error = server.failed() => Some(error),
        () = termination => None,
    };
    if let Some(error) = failure {
        let code = fail(&error);
        server.stop().await;
        return code;
    }
    tracing::info!("stopping");
    server.stop().await;
    tracing::info!("stopped");
    ExitCode::SUCCESS
}

/// Listens for SIGTERM, Ctrl-C and SIGHUP. The future completes with the first signal.
fn listen_for_termination() -> Result<impl Future<Output = ()>, StartError> {
    let to_start_error = |error: std::io::Error| StartError::Serve(format!("cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(to_start_error)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(to_start_error)?;
    // A process under `nohup` must outlive its terminal.
    let mut hangup = if ignores_hangup() { None } else { Some(signal(SignalKind::hangup()).map_err(to_start_error)?) };
    let hangup_received = async move {
        match &mut hangup {
            Some(hangup) => hangup.recv().await,
            None => std::future::pending().await,
        }
    };
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup_received => {}
        }
    })
}

/// Returns true if this process was started with SIGHUP ignored.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The lowest bit is signal 1, SIGHUP.
    ignored.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & 1 == 1))
}

/// Shows the terminal view of a server.
#[expect(clippy::print_stderr, reason = "there is no log")]
async fn show_top(server: &str) -> ExitCode {
    match top::run(server).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ top::Error::NotATerminal) => exit_early(EarlyExit::Invalid(error.to_string())),
        Err(error) => {
            eprintln!("watchpost: {}", escape(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

/// Follows a job and exits with its result.
#[expect(clippy::print_stderr, reason = "there is no log")]
async fn watch_job(options: jobs_watch::Options) -> ExitCode {
    match jobs_watch::run(options).await {
        Ok(Outcome::Completed) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::FAILURE,
        Ok(Outcome::Cancelled | Outcome::Deleted | Outcome::Stopped) => ExitCode::from(EXIT_UNFINISHED),
        Err(error) => {
            eprintln!("watchpost: {}", escape(&error.to_string()));
            ExitCode::from(EXIT_UNFINISHED)
        }
    }
}

/// Reports the GPUs of this host until a termination signal.
async fn report(settings: agent::Settings) -> ExitCode {
    let termination = match listen_for_termination() {
        Ok(signals) => signals,
        Err(error) => return fail(&error),
    };
    let shutdown = CancellationToken::new();
    let stopping = async {
        termination.await;
        shutdown.cancel();
    };
    tokio::join!(stopping, agent::run(settings, shutdown.clone()));
    ExitCode::SUCCESS
}

/// Migrates the schema, or prints its state.
#[expect(clippy::print_stdout, reason = "the state is the output of the command")]
async fn migrate(settings: &Settings, direction: Migrate) -> Result<ExitCode, StartError> {
    if let Migrate::Down { yes: false, steps } = direction {
        let problem = format!("setting `--yes`: reverting {steps} migrations destroys data; add --yes to confirm");
        return Ok(exit_early(EarlyExit::Invalid(problem)));
    }
    let database = settings.database();
    let db = match direction {
        Migrate::Up => Db::connect_exclusive(&database, "migrate up").await?,
        Migrate::Down { .. } => Db::connect_exclusive(&database, "migrate down").await?,
        // The command writes nothing, so no lock is needed.
        Migrate::Status => Db::connect(&database).await?,
    };
    match direction {
        Migrate::Up => db.migrate_up().await?,
        Migrate::Down { steps, .. } => {
            db.ensure_no_servers().await?;
            db.migrate_down(steps).await?;
        }
        Migrate::Status => {
            for (name, applied) in db.migration_status().await? {
                println!("{} {name}", if applied { "applied" } else { "pending" });
            }
        }
    }
    db.close().await;
    Ok(ExitCode::SUCCESS)
}

/// Prints the state of the encryption keys, or replaces the keys.
#[expect(clippy::print_stdout, reason = "the state is the output of the command")]
async fn keys(settings: &Settings, action: KeyAction) -> Result<ExitCode, StartError> {
    if matches!(action, KeyAction::Replace { yes: false }) {
        let problem = "setting `--yes`: the secrets of all channels would have to be set again; add --yes to confirm";
        return Ok(exit_early(EarlyExit::Invalid(problem.to_string())));
    }
    let keyring = settings.keyring();
    let database = settings.database();
    let db = match action {
        KeyAction::Status | KeyAction::Rotate { stage: true } => Db::connect(&database).await?,
        KeyAction::Rotate { stage: false } => Db::connect_exclusive(&database, "keys rotate").await?,
        KeyAction::Replace { .. } => Db::connect_exclusive(&database, "keys replace").await?,
    };
    let result = match action {
        KeyAction::Status => Ok(()),
        KeyAction::Rotate { stage: true } => keyring.stage(),
        KeyAction::Rotate { stage: false } => keyring.rotate(&db).await,
        KeyAction::Replace { .. } => keyring.replace(),
    };
    result.map_err(StartError::Keys)?;
    let usage = keyring.usage(&db).await;
    print!("{}", usage.map_err(|error| StartError::Keys(Chain(&error).to_string()))?);
    db.close().await;
    Ok(ExitCode::SUCCESS)
}

/// Sends the log to standard error.
fn start_log(settings: &Settings) {
    // The directives were checked together with the other settings.
    let filter = EnvFilter::builder().parse_lossy(&settings.log);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(log::fields())
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .init();
}

/// Exits before the log is started.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "there is no log yet")]
fn exit_early(stop: EarlyExit) -> ExitCode {
    match stop {
        EarlyExit::Print(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        EarlyExit::Invalid(problem) => {
            eprintln!("watchpost: {problem}");
            ExitCode::from(EXIT_INVALID_SETTING)
        }
    }
}

/// Reports a fatal error: in the log or, if the log excludes errors, on standard error.
#[expect(clippy::print_stderr, reason = "the log may leave errors out")]
fn fail(error: &StartError) -> ExitCode {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{error}");
    } else {
        eprintln!("watchpost: {error}");
    }
    ExitCode::FAILURE
}
