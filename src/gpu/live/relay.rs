//! Live samples for the other processes on one PostgreSQL: whoever watches sees the GPUs of all of
//! them, wherever it is connected.
//!
//! Samples are stored seconds after they were taken, so it is the samples themselves that are sent, as
//! signals of the database: the newest of each GPU, and only if another process is there to hear them.
//! One that is lost is made up for by the next.

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

use super::{LiveGpus, Origin, Reading};
use crate::{
    db::{
        Db,
        signals::{self, SignalHandler},
    },
    pb,
};

/// The channel on which processes send each other samples.
const CHANNEL: &str = "watchpost_gpu_stats";

/// How large a signal may be before it is written in base64: PostgreSQL takes less than 8,000 bytes.
const LARGEST: usize = 5_900;

/// How often a process says that it is there, and for how long that is believed.
const HELLO_EVERY: Duration = Duration::from_secs(10);
const BELIEVED_FOR: Duration = Duration::from_secs(30);

/// How close together samples are sent at most.
const SEND_EVERY: Duration = Duration::from_millis(100);

/// What one process tells the others.
#[derive(Clone, PartialEq, Message)]
struct Signal {
    /// Of the process, made at its start.
    #[prost(bytes = "vec", tag = "1")]
    process: Vec<u8>,
    /// None: the process only says that it is there.
    #[prost(message, repeated, tag = "2")]
    gpu_stats: Vec<pb::GpuStats>,
}

/// Sends the samples of this process.
#[derive(Debug)]
pub struct Relay {
    db: Db,
    live: LiveGpus,
    process: Vec<u8>,
    others: Arc<Others>,
    /// The number of the last reading of each GPU that was sent.
    sent: HashMap<String, u64>,
}

/// The other processes, as far as they were heard.
#[derive(Debug, Default)]
struct Others {
    heard: Mutex<HashMap<Vec<u8>, Instant>>,
    /// Told when one is heard for the first time.
    met: Notify,
}

/// The relay between these readings and those of other processes, and what hears them.
pub fn new(db: Db, live: LiveGpus) -> (Relay, (&'static str, SignalHandler)) {
    let relay = Relay {
        db,
        live: live.clone(),
        process: Uuid::now_v7().as_bytes().to_vec(),
        others: Arc::default(),
        sent: HashMap::new(),
    };
    let (process, others) = (relay.process.clone(), relay.others.clone());
    let handler = move |said: Option<&str>| {
        let Some(signal) = said.and_then(Signal::read) else {
            return;
        };
        if signal.process == process {
            return;
        }
        others.hear(signal.process);
        for stats in signal.gpu_stats {
            live.publish_newer(stats, Origin::Relayed);
        }
    };
    (relay, (CHANNEL, Box::new(handler)))
}

impl Relay {
    /// Sends what is new until shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut hellos = interval(HELLO_EVERY);
        hellos.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changed = self.live.changed();
        let relaying = async {
            loop {
                tokio::select! {
                    _ = hellos.tick() => self.send(&[]).await,
                    () = self.others.met.notified() => {
                        // It knows nothing, and not even that this process is there.
                        self.sent.clear();
                        self.send(&[]).await;
                    }
                    Ok(()) = changed.changed() => {}
                }
                if self.others.are_there() {
                    self.send_news().await;
                }
                sleep(SEND_EVERY).await;
            }
        };
        shutdown.run_until_cancelled(relaying).await;
    }

    async fn send_news(&mut self) {
        let mut news = self.live.readings();
        news.retain(|reading| reading.origin != Origin::Relayed && self.is_new(reading));
        let mut from = 0;
        while from < news.len() {
            let mut bytes = 0;
            let fits = |reading: &&Arc<Reading>| {
                bytes += reading.stats.encoded_len() + 4;
                bytes <= LARGEST
            };
            // One always fits.
            let length = news[from..].iter().take_while(fits).count().max(1);
            self.send(&news[from..from + length]).await;
            from += length;
        }
    }

    fn is_new(&self, reading: &Reading) -> bool {
        let uuid = reading.stats.gpu_uuid.as_deref().unwrap_or_default();
        self.sent.get(uuid) != Some(&reading.number)
    }

    async fn send(&mut self, readings: &[Arc<Reading>]) {
        let signal = Signal {
            process: self.process.clone(),
            gpu_stats: readings
                .iter()
                .map(|reading| reading.stats.clone())
                .collect(),
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

impl Others {
    fn hear(&self, process: Vec<u8>) {
        let mut heard = self.heard.lock();
        if heard.insert(process, Instant::now()).is_none() {
            self.met.notify_one();
        }
    }

    fn are_there(&self) -> bool {
        let mut heard = self.heard.lock();
        heard.retain(|_, at| at.elapsed() < BELIEVED_FOR);
        !heard.is_empty()
    }
}

impl Signal {
    fn read(text: &str) -> Option<Self> {
        let bytes = BASE64_STANDARD_NO_PAD.decode(text).ok()?;
        Self::decode(bytes.as_slice()).ok()
    }
}
