//! The real binary, as a process of its own.

use std::{
    ffi::OsString,
    process::{ExitStatus, Stdio},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
    time::timeout,
};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{PATIENCE, eventually_some};

/// A server process, or that of an agent. It is killed when this is dropped.
pub struct Process {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    output: Lines<BufReader<ChildStdout>>,
    /// Where it listens, if it does.
    pub address: String,
}

impl Process {
    /// Starts the binary on this database, and waits until it listens.
    pub async fn start(database_url: &str, listen: &str) -> Self {
        Self::start_with(database_url, listen, &[], &[]).await
    }

    /// The same with these environment variables and arguments.
    pub async fn start_with(
        database_url: &str,
        listen: &str,
        variables: &[(&str, OsString)],
        arguments: &[&str],
    ) -> Self {
        let mut args = vec!["--database-url", database_url, "--listen", listen];
        args.extend(arguments);
        let mut command = command(&args);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let mut process = Self::spawn_command(command);
        let line = process.says("listening on ").await;
        let (_, address) = line.split_once("listening on ").expect("it was found");
        process.address = format!("http://{address}");
        process
    }

    /// Starts the binary with these arguments.
    pub fn spawn(args: &[&str]) -> Self {
        Self::spawn_command(command(args))
    }

    fn spawn_command(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, log, output, address: String::new() }
    }

    /// Waits for a line of the log with this text.
    pub async fn says(&mut self, text: &str) -> String {
        loop {
            let line = timeout(PATIENCE, self.log.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("the log does not say `{text}`")).unwrap();
            let line = line.unwrap_or_else(|| panic!("the process ends before it says `{text}`"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits for a line on standard output with this text.
    pub async fn prints(&mut self, text: &str) -> String {
        loop {
            let line = timeout(PATIENCE, self.output.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("it does not print `{text}`")).unwrap();
            let line = line.unwrap_or_else(|| panic!("the process ends before it prints `{text}`"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits until the server serves.
    pub async fn serving(&self) -> Channel {
        eventually_some("the server serves", async || {
            let channel = self.channel().await.ok()?;
            let serves = overall(&channel).await == Some(ServingStatus::Serving);
            serves.then_some(channel)
        })
        .await
    }

    async fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        Channel::from_shared(self.address.clone()).unwrap().connect().await
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("a running process")
    }

    /// Waits until it says where it serves metrics. For a process that was asked to.
    pub async fn metrics_address(&mut self) -> String {
        let line = self.says("metrics and health at http://").await;
        let (_, address) = line.rsplit_once("http://").expect("it was found");
        address.to_string()
    }

    /// Kills the process with SIGKILL.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Sends a signal by its name.
    pub async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("a running process").to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Waits until the process ends. Returns how, the rest of its log, and what it said on standard output.
    pub async fn ended(mut self) -> (ExitStatus, String, String) {
        let reading = async { tokio::join!(rest(&mut self.log), rest(&mut self.output)) };
        let (log, output) = timeout(PATIENCE, reading).await.expect("the process ends");
        (self.child.wait().await.unwrap(), log, output)
    }
}

async fn rest<R: AsyncRead + Unpin>(lines: &mut Lines<BufReader<R>>) -> String {
    let mut rest = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        rest += &line;
        rest.push('\n');
    }
    rest
}

/// What the health service says of the server as a whole.
pub async fn overall(channel: &Channel) -> Option<ServingStatus> {
    let check = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
    Some(check.ok()?.into_inner().status())
}

/// The binary with these arguments, without the settings of whoever runs the tests.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_watchpost"));
    let folder = std::env::temp_dir();
    command.args(args).env_clear().current_dir(folder).kill_on_drop(true).stdin(Stdio::null());
    command
}
