//! The watch of the server: it goes on after its cursor when it breaks, as long as it takes.

use std::{convert::Infallible, error::Error, time::Duration};

use tokio::{
    sync::mpsc,
    time::{error::Elapsed, sleep, timeout},
};
use tonic::{Code, Status, transport::Endpoint};

use super::state::Heard;
use crate::pb::{self, Topic, WatchStart, monitor_service_client::MonitorServiceClient};

/// How often the server shall say that it is there.
const HEARTBEAT: prost_types::Duration = prost_types::Duration {
    seconds: 2,
    nanos: 0,
};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

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
        let Err(broken) = watch.follow().await;
        if !watch.cursor.is_empty() && broken.refuses_cursor() {
            watch.cursor.clear();
            continue;
        }
        if !watch.tell(Heard::Broken(broken.reason())).await {
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
    /// Follows one connection until it breaks.
    async fn follow(&mut self) -> Result<Infallible, Broken> {
        let endpoint = Endpoint::from_shared(self.server.clone())?.connect_timeout(CONNECT);
        let mut monitor = MonitorServiceClient::new(endpoint.connect().await?);
        let watch = timeout(SILENCE, monitor.watch(self.request())).await;
        let mut responses = watch??.into_inner();
        let mut connected = false;
        loop {
            let next = timeout(SILENCE, responses.message()).await;
            let response = next??.ok_or(Broken::Ended)?;
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
                return Err(Broken::Ended);
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

/// Why a connection ended, or could not be made.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("it cannot be reached")]
    Unreachable(#[from] tonic::transport::Error),
    #[error("it is silent")]
    Silent(#[from] Elapsed),
    #[error("the watch ended")]
    Ended,
    #[error("{}", .0.message())]
    Status(#[from] Status),
}

impl Broken {
    /// Whether this is what a server answers that cannot go on after the cursor: too old, of
    /// another database, or ahead of what it knows.
    fn refuses_cursor(&self) -> bool {
        let codes = [
            Code::OutOfRange,
            Code::InvalidArgument,
            Code::FailedPrecondition,
        ];
        matches!(self, Self::Status(status) if codes.contains(&status.code()))
    }

    /// What is at the bottom of it: what lies above only says that something went wrong.
    fn reason(&self) -> String {
        let mut cause: Option<&dyn Error> = match self {
            Self::Unreachable(error) => error.source(),
            Self::Status(status) => status.source(),
            Self::Silent(_) | Self::Ended => None,
        };
        let mut reason = self.to_string();
        while let Some(error) = cause {
            reason = error.to_string();
            cause = error.source();
        }
        reason
    }
}
