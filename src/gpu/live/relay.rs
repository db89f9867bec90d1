//! Relay of live samples between processes on one PostgreSQL database, so that a watch sees all
//! GPUs at any process.
//!
//! Samples are stored seconds after they were taken, so the relay sends the samples themselves
//! through NOTIFY. The relay sends the newest sample of each GPU, and only while another process is
//! active. A lost sample is replaced by the next one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use parking_lot::Mutex;
use prost::Message;
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::live_gpus::{LiveGpus, Origin, Reading};
use crate::{
    db::{
        Db,
        signals::{self, SignalHandler},
    },
    pb,
};

/// Channel of NOTIFY for samples.
const CHANNEL: &str = "watchpost_gpu_stats";

/// Upper bound of a message before base64 encoding. PostgreSQL accepts payloads below 8,000 bytes.
const MAX_SIGNAL_BYTES: usize = 5_900;

/// Interval of announcements of a process, and the age of the last announcement at which a peer
/// counts as gone.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(10);
const PEER_TIMEOUT: Duration = Duration::from_secs(30);

/// Minimum time between two messages.
const SEND_INTERVAL: Duration = Duration::from_millis(100);

/// Message from one process to its peers.
#[derive(Clone, PartialEq, Message)]
struct Signal {
    /// Id of the process, created at its start.
    #[prost(bytes = "vec", tag = "1")]
    process: Vec<u8>,
    /// Samples. Empty in a mere announcement of the process.
    #[prost(message, repeated, tag = "2")]
    gpu_stats: Vec<pb::GpuStats>,
}

/// Sender of the samples of this process.
#[derive(Debug)]
pub struct Relay {
    db: Db,
    live: LiveGpus,
    process: Vec<u8>,
    peers: Arc<Peers>,
    /// Number of the last sent reading of each GPU.
    sent: HashMap<String, u64>,
}

/// Other processes, with the time of the last message from each.
#[derive(Debug, Default)]
struct Peers {
    last_heard_at: Mutex<HashMap<Vec<u8>, Instant>>,
    /// Notified when a new peer appears.
    joined: Notify,
}

/// Relay of the readings in `live`, and the handler for messages of other processes.
pub fn new(db: Db, live: LiveGpus) -> (Relay, (&'static str, SignalHandler)) {
    let relay = Relay {
        db,
        live: live.clone(),
        process: Uuid::now_v7().as_bytes().to_vec(),
        peers: Arc::default(),
        sent: HashMap::new(),
    };
    let (process, peers) = (relay.process.clone(), relay.peers.clone());
    let handler = move |payload: Option<&str>| {
        let Some(signal) = payload.and_then(Signal::decode_payload) else {
            return;
        };
        if signal.process == process {
            return;
        }
        peers.record(signal.process);
        for stats in signal.gpu_stats {
            live.publish_newer(stats, Origin::Relayed);
        }
    };
    (relay, (CHANNEL, Box::new(handler)))
}

impl Relay {
    /// Sends announcements and new readings until shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut announcements = interval(ANNOUNCE_INTERVAL);
        announcements.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changed = self.live.changed();
        let relaying = async {
            loop {
                tokio::select! {
                    _ = announcements.tick() => self.send(&[]).await,
                    () = self.peers.joined.notified() => {
                        // A new peer knows neither the readings nor this process.
                        self.sent.clear();
                        self.send(&[]).await;
                    }
                    Ok(()) = changed.changed() => {}
                }
                if self.peers.any_active() {
                    self.send_changes().await;
                }
                sleep(SEND_INTERVAL).await;
            }
        };
        shutdown.run_until_cancelled(relaying).await;
    }

    async fn send_changes(&mut self) {
        let mut changes = self.live.readings();
        changes.retain(|reading| reading.origin != Origin::Relayed && self.is_new(reading));
        let mut start = 0;
        while start < changes.len() {
            let mut bytes = 0;
            let fits = |reading: &&Arc<Reading>| {
                bytes += reading.stats.encoded_len() + 4;
                bytes <= MAX_SIGNAL_BYTES
            };
            // A single sample always fits.
            let length = changes[start..].iter().take_while(fits).count().max(1);
            self.send(&changes[start..start + length]).await;
            start += length;
        }
    }

    fn is_new(&self, reading: &Reading) -> bool {
        let uuid = reading.stats.gpu_uuid.as_deref().unwrap_or_default();
        self.sent.get(uuid) != Some(&reading.number)
    }

    async fn send(&mut self, readings: &[Arc<Reading>]) {
        let signal = Signal {
            process: self.process.clone(),
            gpu_stats: readings.iter().map(|reading| reading.stats.clone()).collect(),
        };
        let payload = BASE64_STANDARD_NO_PAD.encode(signal.encode_to_vec());
        if let Err(error) = signals::notify(&self.db, CHANNEL, &payload).await {
            tracing::debug!(%error, "other processes could not be sent GPU samples");
            return;
        }
        for reading in readings {
            let uuid = reading.stats.gpu_uuid.clone().unwrap_or_default();
            self.sent.insert(uuid, reading.number);
        }
    }
}

impl Peers {
    fn record(&self, process: Vec<u8>) {
        let mut last_heard_at = self.last_heard_at.lock();
        if last_heard_at.insert(process, Instant::now()).is_none() {
            self.joined.notify_one();
        }
    }

    fn any_active(&self) -> bool {
        let mut last_heard_at = self.last_heard_at.lock();
        last_heard_at.retain(|_, time| time.elapsed() < PEER_TIMEOUT);
        !last_heard_at.is_empty()
    }
}

impl Signal {
    fn decode_payload(text: &str) -> Option<Self> {
        let bytes = BASE64_STANDARD_NO_PAD.decode(text).ok()?;
        Self::decode(bytes.as_slice()).ok()
    }
}
