//! Connection to the server: a watch that resumes after failures at its cursor, without a time
//! limit.

use std::{convert::Infallible, time::Duration};

use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::state::ConnectionEvent;
use crate::{
    client::{ConnectionError, HEARTBEAT_INTERVAL, RECEIVE_TIMEOUT, RETRY_PAUSES, connect},
    pb::{self, Topic, WatchStart, monitor_service_client::MonitorServiceClient},
};

/// Watches the server until the receiver is closed.
pub(super) async fn watch(server: String, events: mpsc::Sender<ConnectionEvent>) {
    let mut watcher = Watcher { server, events, cursor: String::new(), pause: RETRY_PAUSES.0 };
    loop {
        let Err(broken) = watcher.follow().await;
        if !watcher.cursor.is_empty() && broken.refuses_cursor() {
            watcher.cursor.clear();
            continue;
        }
        if !watcher.send(ConnectionEvent::Broken(broken.reason())).await {
            return;
        }
        sleep(watcher.pause).await;
        watcher.pause = (watcher.pause * 2).min(RETRY_PAUSES.1);
    }
}

struct Watcher {
    server: String,
    events: mpsc::Sender<ConnectionEvent>,
    /// Cursor to resume from. Empty before the end of a snapshot.
    cursor: String,
    pause: Duration,
}

impl Watcher {
    /// Follows one connection until it breaks.
    async fn follow(&mut self) -> Result<Infallible, ConnectionError> {
        let mut monitor = MonitorServiceClient::new(connect(&self.server).await?);
        let watch = timeout(RECEIVE_TIMEOUT, monitor.watch(self.request())).await;
        let mut responses = watch??.into_inner();
        let mut connected = false;
        loop {
            let next = timeout(RECEIVE_TIMEOUT, responses.message()).await;
            let response = next??.ok_or(ConnectionError::Ended)?;
            if !connected {
                connected = true;
                self.pause = RETRY_PAUSES.0;
                self.send(ConnectionEvent::Connected).await;
                if self.cursor.is_empty() {
                    self.send(ConnectionEvent::Snapshot).await;
                }
            }
            if !response.cursor.is_empty() {
                self.cursor.clone_from(&response.cursor);
            }
            if !self.send(ConnectionEvent::Response(Box::new(response))).await {
                return Err(ConnectionError::Ended);
            }
        }
    }

    fn request(&self) -> pb::WatchRequest {
        let start = if self.cursor.is_empty() { WatchStart::Snapshot } else { WatchStart::Unspecified };
        pb::WatchRequest {
            topics: vec![Topic::GpuStats.into(), Topic::Alerts.into()],
            cursor: self.cursor.clone(),
            start: start.into(),
            heartbeat_interval: Some(HEARTBEAT_INTERVAL),
            ..Default::default()
        }
    }

    /// Returns false if the receiver is closed.
    async fn send(&self, event: ConnectionEvent) -> bool {
        self.events.send(event).await.is_ok()
    }
}
