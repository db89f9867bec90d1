//! The watch of the server: it goes on after its cursor when it breaks, as long as it takes.

use std::{convert::Infallible, time::Duration};

use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::state::Heard;
use crate::{
    client::{ConnectionError, HEARTBEAT_INTERVAL, RECEIVE_TIMEOUT, RETRY_PAUSES, connect},
    pb::{self, Topic, WatchStart, monitor_service_client::MonitorServiceClient},
};

/// Watches the server until nobody hears any more.
pub(super) async fn watch(server: String, heard: mpsc::Sender<Heard>) {
    let mut watch = Watch {
        server,
        heard,
        cursor: String::new(),
        pause: RETRY_PAUSES.0,
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
        watch.pause = (watch.pause * 2).min(RETRY_PAUSES.1);
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
                self.tell(Heard::Connected).await;
                if self.cursor.is_empty() {
                    self.tell(Heard::Snapshot).await;
                }
            }
            if !response.cursor.is_empty() {
                self.cursor.clone_from(&response.cursor);
            }
            if !self.tell(Heard::Response(Box::new(response))).await {
                return Err(ConnectionError::Ended);
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
            heartbeat_interval: Some(HEARTBEAT_INTERVAL),
            ..Default::default()
        }
    }

    /// Whether anybody hears it.
    async fn tell(&self, heard: Heard) -> bool {
        self.heard.send(heard).await.is_ok()
    }
}
