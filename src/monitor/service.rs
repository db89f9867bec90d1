//! One subscriber's stream: first a heartbeat, then what happens.

use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use async_stream::try_stream;
use bytes::Bytes;
use futures_util::Stream;
use prometheus::IntCounter;
use prost::Message;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Announcement, Feed, filter::Filter};
use crate::{
    entity,
    error::{Error, Result},
    feed::{Entry, Position},
    gpu::LiveGpus,
    pb::{self, watch_response::Update},
    rpc::time,
};

/// How often a heartbeat is sent unless the client says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How often a heartbeat may be asked for.
const HEARTBEATS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(5);

/// Pushes changes and live GPU stats to subscribers. Clones share what they push.
#[derive(Clone)]
pub struct Monitor {
    feed: Feed,
    gpus: LiveGpus,
    shutdown: CancellationToken,
    places: Arc<Semaphore>,
    max_watches: usize,
    sent: IntCounter,
}

impl Monitor {
    /// A monitor of the feed and the GPUs, for at most `max_watches` subscribers at a time.
    pub fn new(
        feed: Feed,
        gpus: LiveGpus,
        max_watches: usize,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            feed,
            gpus,
            shutdown,
            places: Arc::new(Semaphore::new(max_watches)),
            max_watches,
            sent: IntCounter::new("sent", "sent").expect("a legal name"),
        }
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        self.max_watches - self.places.available_permits()
    }

    /// How many responses were sent, over all watches.
    pub fn sent(&self) -> &IntCounter {
        &self.sent
    }

    /// Begins a watch. What it gives are encoded `WatchResponse`s.
    pub(super) async fn watch(
        &self,
        request: pb::WatchRequest,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + use<>> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| Error::TooManyWatches {
            limit: self.max_watches,
        })?;
        let filter = Filter::parse(&request)?;
        let heartbeat = heartbeat_interval(request.heartbeat_interval)?;
        let (position, earlier) = match request.cursor.as_str() {
            "" => self.feed.now().await?,
            cursor => (self.feed.resume(cursor).await?, HashSet::new()),
        };
        let watch = Watch {
            monitor: self.clone(),
            filter,
            position,
            earlier,
            sent: HashMap::new(),
            _place: place,
        };
        Ok(watch.stream(heartbeat))
    }
}

fn heartbeat_interval(interval: Option<prost_types::Duration>) -> Result<Duration> {
    let Some(interval) = interval else {
        return Ok(HEARTBEAT);
    };
    // The conversion of `prost_types` overflows where both parts are far below zero.
    let seconds = u64::try_from(interval.seconds).ok();
    let nanos = u32::try_from(interval.nanos).ok();
    seconds
        .zip(nanos.filter(|nanos| *nanos < 1_000_000_000))
        .map(|(seconds, nanos)| Duration::new(seconds, nanos))
        .filter(|interval| HEARTBEATS.contains(interval))
        .ok_or_else(|| Error::invalid("heartbeat_interval", "must be in [0.1 s, 300 s]"))
}

/// What a subscriber waited for.
enum Step {
    Heartbeat,
    GpuStats,
    Changes(Result<Vec<Arc<Entry<Announcement>>>>),
    End,
}

/// A subscriber: where it is, and what it wants.
struct Watch {
    monitor: Monitor,
    filter: Filter,
    /// The place up to which it has seen the feed.
    position: Position,
    /// Transactions after the start that had been committed before it.
    earlier: HashSet<i64>,
    /// The number of the last sample of each GPU that it was sent.
    sent: HashMap<String, u64>,
    _place: OwnedSemaphorePermit,
}

impl Watch {
    /// Nothing is read ahead for the subscriber: while it does not read, this is not polled, and it costs its place.
    fn stream(mut self, heartbeat: Duration) -> impl Stream<Item = Result<Bytes, Status>> + Send {
        try_stream! {
            let mut heartbeats = interval_at(Instant::now() + heartbeat, heartbeat);
            heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut sampled = self.monitor.gpus.changed();
            // Those that are there already are news to this subscriber.
            sampled.mark_changed();
            let (changes, gpu_stats) = (self.filter.wants_changes(), self.filter.wants_gpu_stats());
            let shutdown = self.monitor.shutdown.clone();
            let feed = self.monitor.feed.clone();

            yield self.heartbeat().await;
            loop {
                let step = tokio::select! {
                    // What comes seldom goes first, so that a busy feed cannot hold it up.
                    biased;
                    () = shutdown.cancelled() => Step::End,
                    _ = heartbeats.tick() => Step::Heartbeat,
                    Ok(()) = sampled.changed(), if gpu_stats => Step::GpuStats,
                    entries = feed.after(self.position), if changes => Step::Changes(entries),
                };
                match step {
                    Step::Heartbeat => yield self.heartbeat().await,
                    Step::GpuStats => {
                        for message in self.new_gpu_stats() {
                            yield message;
                        }
                    }
                    Step::Changes(entries) => {
                        for entry in entries? {
                            self.position = entry.position;
                            if self.wants(&entry) {
                                yield entry.item.encoded.clone();
                            }
                        }
                    }
                    Step::End => {
                        yield self.heartbeat().await;
                        Err(Error::ShuttingDown)?;
                    }
                }
            }
        }
    }

    fn wants(&self, entry: &Entry<Announcement>) -> bool {
        !self.earlier.contains(&entry.position.xid)
            && self.filter.matches(entry.item.update.as_ref())
    }

    /// A message that is not in the feed, with the cursor of where the subscriber is in it.
    fn encode(&mut self, update: Update, gpu_stats_skipped: i64) -> Bytes {
        if !self.filter.wants_changes() {
            // It has seen all that it wants to see of the feed.
            self.position = self.position.max(self.monitor.feed.head());
        }
        let cursor = self.monitor.feed.cursors().encode(self.position);
        pb::WatchResponse {
            cursor,
            update: Some(update),
            gpu_stats_skipped,
        }
        .encode_to_vec()
        .into()
    }

    async fn heartbeat(&mut self) -> Bytes {
        // A database that is away has nothing new to tell; the heartbeat must go out all the same.
        let behind = if self.filter.wants_changes() {
            self.monitor.feed.behind(self.position).await.ok()
        } else {
            None
        };
        let (behind_changes, behind_time) = behind.unwrap_or_default();
        let heartbeat = pb::Heartbeat {
            server_time: Some(time::to_proto(entity::now())),
            behind_changes,
            behind_ms: i64::try_from(behind_time.as_millis()).unwrap_or(i64::MAX),
        };
        self.encode(Update::Heartbeat(heartbeat), 0)
    }

    /// The newest sample of every GPU of which there is a newer one than was sent.
    fn new_gpu_stats(&mut self) -> Vec<Bytes> {
        let mut messages = Vec::new();
        for reading in self.monitor.gpus.readings() {
            let uuid = reading.stats.gpu_uuid.clone().unwrap_or_default();
            let sent = self.sent.get(&uuid).copied();
            if !self.filter.wants_gpu(&uuid) || sent.is_some_and(|sent| sent >= reading.number) {
                continue;
            }
            let skipped = sent.map_or(0, |sent| reading.number - sent - 1);
            self.sent.insert(uuid, reading.number);
            let skipped = i64::try_from(skipped).unwrap_or(i64::MAX);
            messages.push(self.encode(Update::GpuStats(reading.stats.clone()), skipped));
        }
        messages
    }
}
