//! The watch of the server: it goes on after its cursor when it breaks, as long as it takes.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::{Code, Status, transport::Endpoint};

use super::state::Heard;
use crate::pb::{self, Topic, WatchStart, monitor_service_client::MonitorServiceClient};

/// How often the server shall say that it is there.
const HEARTBEAT: prost_types::Duration = prost_types::Duration {
    seconds: 2,
    nanos: 0,
};

/// How long a server that should have said something may be silent.
const SILENCE: Duration = Duration::from_secs(20);

/// How long to wait before the next attempt, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Watches the server until nobody hears any more.
pub(super) async fn watch(server: String, heard: mpsc::Sender<Heard>) {
    let mut watch = Watch {
        server,
        heard,
        cursor: String::new(),
        pause: PAUSES.0,
    };
    loop {
        let broken = watch.follow().await;
        if !watch.cursor.is_empty() && refuses_cursor(broken.code()) {
            watch.cursor.clear();
            continue;
        }
        if !watch.tell(Heard::Broken(problem(&broken))).await {
            return;
        }
        sleep(watch.pause).await;
        watch.pause = (watch.pause * 2).min(PAUSES.1);
    }
}

struct Watch {
    server: String,
    heard: mpsc::Sender<Heard>,
    /// Where to go on; empty before the end of a snapshot.
    cursor: String,
    pause: Duration,
}

impl Watch {
    /// Follows one connection, and returns why it ended.
    async fn follow(&mut self) -> Status {
        let Err(status) = self.try_follow().await;
        status
    }

    async fn try_follow(&mut self) -> Result<std::convert::Infallible, Status> {
        let silent = |_| Status::deadline_exceeded("the server is silent");
        let unreachable = |error| Status::from_error(Box::new(error));
        let endpoint = Endpoint::from_shared(self.server.clone())
            .map_err(unreachable)?
            .connect_timeout(Duration::from_secs(5));
        let channel = endpoint.connect().await.map_err(unreachable)?;
        let mut monitor = MonitorServiceClient::new(channel);
        let watch = timeout(SILENCE, monitor.watch(self.request())).await;
        let mut responses = watch.map_err(silent)??.into_inner();
        let mut connected = false;
        loop {
            let next = timeout(SILENCE, responses.message()).await;
            let ended = || Status::unavailable("the server ended the watch");
            let response = next.map_err(silent)??.ok_or_else(ended)?;
            if !connected {
                connected = true;
                self.pause = PAUSES.0;
                self.tell(Heard::Connected).await;
                if self.cursor.is_empty() {
                    self.tell(Heard::Snapshot).await;
                }
            }
            if !response.cursor.is_empty() {
                self.cursor.clone_from(&response.cursor);
            }
            if !self.tell(Heard::Response(Box::new(response))).await {
                return Err(Status::cancelled("nobody hears"));
            }
        }
    }

    fn request(&self) -> pb::WatchRequest {
        let start = if self.cursor.is_empty() {
            WatchStart::Snapshot
        } else {
            WatchStart::Unspecified
        };
        pb::WatchRequest {
            topics: vec![Topic::GpuStats.into(), Topic::Alerts.into()],
            cursor: self.cursor.clone(),
            start: start.into(),
            heartbeat_interval: Some(HEARTBEAT),
            ..Default::default()
        }
    }

    /// Whether anybody hears it.
    async fn tell(&self, heard: Heard) -> bool {
        self.heard.send(heard).await.is_ok()
    }
}

/// Whether this is what a server answers that cannot go on after the cursor: too old, of another
/// database, or ahead of what it knows.
fn refuses_cursor(code: Code) -> bool {
    matches!(
        code,
        Code::OutOfRange | Code::InvalidArgument | Code::FailedPrecondition
    )
}

/// What went wrong at the bottom of it: what lies above only says that something did.
fn problem(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    let mut problem = status.message().to_string();
    while let Some(error) = cause {
        problem = error.to_string();
        cause = error.source();
    }
    if problem.is_empty() {
        problem = status.code().description().to_string();
    }
    problem
}
