//! Connection handling shared by the clients of the command line.

use std::{error::Error, io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::error::Elapsed,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// Requested interval of heartbeats from the server.
pub(crate) const HEARTBEAT_INTERVAL: prost_types::Duration = prost_types::Duration { seconds: 2, nanos: 0 };

/// Maximum duration of a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time without a message or heartbeat after which a connection counts as lost.
pub(crate) const RECEIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Minimum and maximum pause between two connection attempts.
pub(crate) const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Connects to the server at this URL.
pub(crate) async fn connect(server: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(server.to_string())?.connect_timeout(CONNECT_TIMEOUT);
    endpoint.connect().await
}

/// Failure of a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("the server cannot be reached")]
    Unreachable(#[from] tonic::transport::Error),
    #[error("the server does not answer")]
    Silent(#[from] Elapsed),
    #[error("the watch ended")]
    Ended,
    #[error("{}", .0.message())]
    Status(#[from] Status),
}

impl ConnectionError {
    /// Returns true if the server refused the cursor: too old, of another database, or ahead of the
    /// feed.
    pub(crate) fn refuses_cursor(&self) -> bool {
        let codes = [Code::OutOfRange, Code::InvalidArgument, Code::FailedPrecondition];
        matches!(self, Self::Status(status) if codes.contains(&status.code()))
    }

    /// Returns the innermost cause, because the outer errors carry no information.
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

/// Termination signals of a client.
pub(crate) struct Signals([Signal; 3]);

impl Signals {
    /// Starts listening for the signals.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?]))
    }

    /// Waits for the first signal.
    pub(crate) async fn wait(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
