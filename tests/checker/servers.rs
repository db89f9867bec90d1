//! The servers of a run: the real binary, killed and started again.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use tokio::time::sleep;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// Servers that share a database. They are killed when this is dropped.
#[derive(Debug)]
pub struct Servers {
    url: String,
    running: Mutex<Vec<(Child, String)>>,
}

impl Servers {
    /// Starts so many servers, and waits until they serve.
    pub async fn start(url: &str, count: usize) -> Self {
        let servers = Self { url: url.to_string(), running: Mutex::new((0..count).map(|_| spawn(url)).collect()) };
        for at in 0..count {
            while !servers.serves(at).await {
                sleep(Duration::from_millis(10)).await;
            }
        }
        servers
    }

    async fn serves(&self, at: usize) -> bool {
        let Some(channel) = self.connect(at).await else {
            return false;
        };
        let mut health = HealthClient::new(channel);
        let check = health.check(HealthCheckRequest::default()).await;
        check.is_ok_and(|check| check.into_inner().status() == ServingStatus::Serving)
    }

    /// Connects to one of them, if it is there.
    pub async fn connect(&self, at: usize) -> Option<Channel> {
        let address = {
            let running = self.running.lock().unwrap();
            running[at % running.len()].1.clone()
        };
        let endpoint = Channel::from_shared(address).unwrap();
        endpoint.connect().await.ok()
    }

    /// Kills one with SIGKILL, and starts it again after a pause.
    pub async fn kill_and_start(&self, at: usize, pause: Duration) {
        {
            let mut running = self.running.lock().unwrap();
            running[at].0.kill().unwrap();
            running[at].0.wait().unwrap();
        }
        sleep(pause).await;
        let url = self.url.clone();
        let started = tokio::task::spawn_blocking(move || spawn(&url));
        self.running.lock().unwrap()[at] = started.await.unwrap();
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for (child, _) in self.running.lock().unwrap().iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts the binary, and waits until it listens. Returns where.
fn spawn(url: &str) -> (Child, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_watchpost"))
        .args(["--database-url", url, "--listen", "127.0.0.1:0"])
        .args(["--nvml-library", "/no/such/libnvidia-ml.so.1"])
        .env_clear()
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = lines.by_ref().map(Result::unwrap).find_map(|line| {
        let (_, address) = line.split_once("listening on ")?;
        Some(format!("http://{address}"))
    });
    // The log must not fill the pipe.
    std::thread::spawn(move || for _ in lines {});
    (child, address.expect("the server says where it listens"))
}
