//! The server under measurement: the real binary, as a process of its own.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;
use tokio::time::sleep;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// A server of the real binary.
pub struct Server {
    pub child: Child,
    pub address: String,
    pub database: &'static str,
    pub folder: TempDir,
    pub url: Option<String>,
}

impl Server {
    pub fn start(url: Option<String>) -> Self {
        Self::start_with(url, &[])
    }

    /// The same with environment variables.
    pub fn start_with(url: Option<String>, variables: &[(&'static str, OsString)]) -> Self {
        let folder = TempDir::new().unwrap();
        let database = match &url {
            Some(url) if url.starts_with("postgres") => "postgres",
            _ => "sqlite",
        };
        let (child, address) = spawn_with(&folder, url.as_ref(), "127.0.0.1:0", variables);
        Self { child, address, database, folder, url }
    }

    pub async fn connect(&self) -> Channel {
        Channel::from_shared(self.address.clone()).unwrap().connect().await.unwrap()
    }

    /// Waits until the server says that it serves.
    pub async fn serving(&self) {
        serving_at(&self.address).await;
    }

    pub fn report(&self, figure: &str, goal: &str, values: &serde_json::Value) {
        let mut line = json!({ "figure": figure, "database": self.database, "goal": goal });
        line.as_object_mut().unwrap().extend(values.as_object().unwrap().clone());
        println!("{line}");
    }
}

/// Waits until the server at this address says that it serves.
pub async fn serving_at(address: &str) {
    loop {
        if let Ok(channel) = Channel::from_shared(address.to_string()).unwrap().connect().await {
            let request = HealthCheckRequest::default();
            let check = HealthClient::new(channel).check(request).await;
            if check.is_ok_and(|check| check.into_inner().status() == ServingStatus::Serving) {
                return;
            }
        }
        sleep(Duration::from_millis(1)).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

pub fn spawn(folder: &TempDir, url: Option<&String>) -> (Child, String) {
    spawn_at(folder, url, "127.0.0.1:0")
}

/// Starts the binary, which listens at this address.
pub fn spawn_at(folder: &TempDir, url: Option<&String>, listen: &str) -> (Child, String) {
    spawn_with(folder, url, listen, &[])
}

/// The same with environment variables.
pub fn spawn_with(
    folder: &TempDir,
    url: Option<&String>,
    listen: &str,
    variables: &[(&'static str, OsString)],
) -> (Child, String) {
    let mut command = Command::new(PathBuf::from(env!("CARGO_BIN_EXE_watchpost")));
    command.args(["--listen", listen, "--notification-networks", "127.0.0.0/8", "--data-dir"]).arg(folder.path());
    if let Some(url) = url {
        command.args(["--database-url", url]);
    }
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let listening = lines.by_ref().map(Result::unwrap).find(|line| line.contains("listening on"));
    let address = listening.unwrap().rsplit(' ').next().unwrap().to_string();
    // The log must not fill the pipe.
    std::thread::spawn(move || for _ in lines {});
    (child, format!("http://{address}"))
}

pub fn stop(child: &mut Child) {
    let pid = child.id().to_string();
    Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    child.wait().unwrap();
}

pub fn resident_mib(server: &Server) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    (kib / 102.4).round() / 10.0
}
