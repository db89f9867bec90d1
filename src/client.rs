//! What clients of the command line share: when they take a connection for broken, and how long they wait.

use std::{error::Error, io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::error::Elapsed,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// How often the server shall say that it is there.
pub(crate) const HEARTBEAT: prost_types::Duration = prost_types::Duration {
    seconds: 2,
    nanos: 0,
};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a server that should have said something may be silent.
pub(crate) const SILENCE: Duration = Duration::from_secs(20);

/// How long to wait before the next attempt, at first and at most.
pub(crate) const PAUSES: (Duration, Duration) =
    (Duration::from_millis(250), Duration::from_secs(5));

/// Connects to the server at this URL.
pub(crate) async fn connect(server: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(server.to_string())?.connect_timeout(CONNECT);
    endpoint.connect().await
}

/// Why a connection ended, or could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
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
    pub(crate) fn refuses_cursor(&self) -> bool {
        let codes = [
            Code::OutOfRange,
            Code::InvalidArgument,
            Code::FailedPrecondition,
        ];
        matches!(self, Self::Status(status) if codes.contains(&status.code()))
    }

    /// What is at the bottom of it: what lies above only says that something went wrong.
    pub(crate) fn reason(&self) -> String {
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

/// The signals that end a client.
pub(crate) struct Signals([Signal; 3]);

impl Signals {
    /// Hears them from now on.
    pub(crate) fn hear() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    /// Waits for one.
    pub(crate) async fn stop(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
