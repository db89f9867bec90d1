//! One subscriber's stream: first a heartbeat, then what happens.

use std::{
    collections::HashMap,
    ops::RangeInclusive,
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_stream::try_stream;
use bytes::Bytes;
use futures_util::Stream;
use prometheus::IntCounter;
use prost::Message;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    Announcement, Feed,
    filter::Filter,
    places::Places,
    snapshot::{Snapshot, Snapshots},
    wire::Encoded,
};
use crate::{
    entity,
    error::{Error, Result},
    feed::{Entry, Start, retention::Retention},
    gpu::LiveGpus,
    pb::{self, WatchStart, watch_response::Update},
    rpc::time,
};

/// What is added to a change that is the last one of its transaction.
static COMMIT_END: LazyLock<Bytes> = LazyLock::new(|| {
    let end = pb::WatchResponse {
        commit_end: true,
        ..Default::default()
    };
    end.encode_to_vec().into()
});

/// How often a heartbeat is sent unless the client says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How often a heartbeat may be asked for.
const HEARTBEATS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(5);

/// What the monitor is allowed, and what it tells of the feed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many watches may be open at a time.
    pub places: Places,
    /// What the feed keeps.
    pub retention: Retention,
}

/// Pushes changes and live GPU stats to subscribers. Clones share what they push.
#[derive(Clone)]
pub struct Monitor {
    feed: Feed,
    gpus: LiveGpus,
    snapshots: Arc<Snapshots>,
    settings: Settings,
    shutdown: CancellationToken,
    sent: IntCounter,
}

impl Monitor {
    /// A monitor of the feed and the GPUs.
    pub fn new(
        feed: Feed,
        gpus: LiveGpus,
        snapshots: Snapshots,
        settings: Settings,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            feed,
            gpus,
            snapshots: Arc::new(snapshots),
            settings,
            shutdown,
            sent: IntCounter::new("sent", "sent").expect("a legal name"),
        }
    }

    /// Number of watches and of streams of workers that are open, those of jobs included.
    pub fn watches(&self) -> usize {
        self.settings.places.taken()
    }

    /// Number of watches and of streams of workers that may be open.
    pub fn most_watches(&self) -> usize {
        self.settings.places.limit()
    }

    /// How many responses were sent, over all watches.
    pub fn sent(&self) -> &IntCounter {
        &self.sent
    }

    /// Begins a watch.
    pub(super) async fn watch(
        &self,
        request: pb::WatchRequest,
    ) -> Result<impl Stream<Item = Result<Encoded, Status>> + Send + use<>> {
        let place = self.settings.places.take()?;
        let filter = Filter::parse(&request)?;
        let heartbeat = heartbeat_interval(request.heartbeat_interval)?;
        let (start, snapshot) = self.start(&request).await?;
        let watch = Watch {
            monitor: self.clone(),
            filter,
            start,
            held: None,
            sent: HashMap::new(),
            _place: place,
        };
        Ok(watch.stream(heartbeat, snapshot))
    }

    /// Where a watch starts, and what it starts with.
    async fn start(&self, request: &pb::WatchRequest) -> Result<(Start, Option<Arc<Snapshot>>)> {
        let start = WatchStart::try_from(request.start)
            .map_err(|_| Error::invalid("start", "is not a value that this server knows"))?;
        if !request.cursor.is_empty() {
            if start != WatchStart::Unspecified {
                let problem = "must be left out with a cursor";
                return Err(Error::invalid("start", problem));
            }
            return Ok((self.feed.resume(&request.cursor).await?, None));
        }
        Ok(match start {
            WatchStart::Unspecified | WatchStart::Now => (self.feed.now().await?, None),
            WatchStart::Earliest => (self.feed.earliest().await?, None),
            WatchStart::Snapshot => {
                let snapshot = self.snapshots.take().await?;
                (snapshot.start.clone(), Some(snapshot))
            }
        })
    }

    /// What the feed holds.
    pub(super) async fn feed_status(&self) -> Result<pb::GetFeedStatusResponse> {
        let status = self.feed.status().await?;
        let cursors = self.feed.cursors();
        let Retention {
            max_age,
            max_changes,
        } = self.settings.retention;
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(pb::GetFeedStatusResponse {
            earliest_cursor: cursors.encode(status.earliest),
            newest_cursor: cursors.encode(self.feed.head().max(status.earliest)),
            changes: status.changes,
            oldest_recorded_at: status.oldest.map(time::to_proto),
            newest_recorded_at: status.newest.map(time::to_proto),
            deleted_changes: status.deleted,
            retention: Some(prost_types::Duration {
                seconds: number(max_age.as_secs()),
                nanos: i32::try_from(max_age.subsec_nanos()).unwrap_or_default(),
            }),
            max_changes: number(max_changes),
            history_id: self.feed.history_id(),
        })
    }
}

/// Reads how often a heartbeat is asked for.
pub fn heartbeat_interval(interval: Option<prost_types::Duration>) -> Result<Duration> {
    let Some(interval) = interval else {
        return Ok(HEARTBEAT);
    };
    time::duration("heartbeat_interval", interval, &HEARTBEATS)
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
    /// Up to where it has seen the feed.
    start: Start,
    /// The last change that it is to be sent, until it is known whether another one of the same
    /// transaction follows.
    held: Option<Arc<Entry<Announcement>>>,
    /// The number of the last sample of each GPU that it was sent.
    sent: HashMap<String, u64>,
    _place: OwnedSemaphorePermit,
}

impl Watch {
    /// Nothing is read ahead for the subscriber: while it does not read, this is not polled, and it costs its place.
    ///
    /// Futures that run seldom are boxed: every subscriber has room for those that are not.
    fn stream(
        mut self,
        heartbeat: Duration,
        snapshot: Option<Arc<Snapshot>>,
    ) -> impl Stream<Item = Result<Encoded, Status>> + Send {
        try_stream! {
            let mut sampled = self.monitor.gpus.changed();
            if let Some(snapshot) = snapshot {
                let mut heartbeat = Box::pin(self.heartbeat()).await;
                heartbeat.cursor.clear();
                yield encode(&heartbeat);
                for await message in Box::pin(self.existing(snapshot)) {
                    yield message?;
                }
            } else {
                yield encode(&Box::pin(self.heartbeat()).await);
                // Those that are there already are news to this subscriber.
                sampled.mark_changed();
            }
            let mut heartbeats = interval_at(Instant::now() + heartbeat, heartbeat);
            heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let (changes, gpu_stats) = (self.filter.wants_changes(), self.filter.wants_gpu_stats());
            let shutdown = self.monitor.shutdown.clone();
            let feed = self.monitor.feed.clone();

            loop {
                // The rest of a transaction is there: nothing else is waited for.
                let between = self.held.is_none();
                let step = tokio::select! {
                    // What comes seldom goes first, so that a busy feed cannot hold it up.
                    biased;
                    () = shutdown.cancelled() => Step::End,
                    _ = heartbeats.tick(), if between => Step::Heartbeat,
                    Ok(()) = sampled.changed(), if between && gpu_stats => Step::GpuStats,
                    entries = feed.after(self.start.position), if changes => Step::Changes(entries),
                };
                feed.check_current(self.start.position)?;
                match step {
                    Step::Heartbeat => yield encode(&Box::pin(self.heartbeat()).await),
                    Step::GpuStats => {
                        for message in self.new_gpu_stats() {
                            yield message;
                        }
                    }
                    Step::Changes(entries) => {
                        for entry in entries? {
                            self.start.position = entry.position;
                            let ends_commit = entry.ends_commit;
                            if self.wants(&entry)
                                && let Some(held) = self.held.replace(entry)
                            {
                                yield self.change(&held, false);
                            }
                            if ends_commit && let Some(held) = self.held.take() {
                                yield self.change(&held, true);
                            }
                        }
                    }
                    Step::End => {
                        if let Some(held) = self.held.take() {
                            yield self.change(&held, false);
                        }
                        yield encode(&Box::pin(self.heartbeat()).await);
                        Err(Error::ShuttingDown)?;
                    }
                }
            }
        }
    }

    /// What there was when the watch began, and the end of it.
    fn existing(&mut self, snapshot: Arc<Snapshot>) -> impl Stream<Item = Result<Encoded>> + Send {
        let own = |shared: &Bytes| Encoded {
            shared: shared.clone(),
            own: Bytes::new(),
        };
        try_stream! {
            let mut end = pb::SnapshotEnd::default();
            let live = self.monitor.gpus.readings();
            let stored = snapshot.gpu_stats.iter().filter(|stored| {
                live.iter().all(|live| live.stats.gpu_uuid != stored.gpu_uuid)
            });
            for stats in stored {
                let uuid = stats.gpu_uuid.as_deref().unwrap_or_default();
                if self.filter.wants_gpu_stats() && self.filter.wants_gpu(uuid) {
                    end.gpu_stats += 1;
                    yield encode(&response(Update::GpuStats(stats.clone())));
                }
            }
            for reading in &live {
                let uuid = reading.stats.gpu_uuid.clone().unwrap_or_default();
                if self.filter.wants_gpu_stats() && self.filter.wants_gpu(&uuid) {
                    end.gpu_stats += 1;
                    self.sent.insert(uuid, reading.number);
                    yield own(&reading.encoded());
                }
            }
            let mut place = 0;
            while let Some(alert) = snapshot.alerts.item(place)? {
                place += 1;
                if self.filter.matches(alert.update.as_ref()) {
                    end.alerts += 1;
                    yield own(&alert.encoded);
                }
            }
            yield encode(&pb::WatchResponse {
                cursor: self.cursor(),
                ..response(Update::SnapshotEnd(end))
            });
        }
    }

    fn wants(&self, entry: &Entry<Announcement>) -> bool {
        !self.start.seen.contains(entry.position.xid)
            && self.filter.matches(entry.item.update.as_ref())
    }

    /// A change, and what is this subscriber's own of it.
    fn change(&self, entry: &Entry<Announcement>, commit_end: bool) -> Encoded {
        let seen = &self.start.seen;
        let own = if seen.matters_after(entry.position) {
            // Of a field that comes twice the last one counts.
            let cursors = self.monitor.feed.cursors();
            let own = pb::WatchResponse {
                cursor: cursors.encode_start(entry.position, Some(seen)),
                commit_end,
                ..Default::default()
            };
            own.encode_to_vec().into()
        } else if commit_end {
            COMMIT_END.clone()
        } else {
            Bytes::new()
        };
        Encoded {
            shared: entry.item.encoded.clone(),
            own,
        }
    }

    /// The cursor for a response that is not in the feed.
    fn cursor(&mut self) -> String {
        let head = self.monitor.feed.head();
        if !self.filter.wants_changes() && head > self.start.position {
            // It has seen all that it wants to see of the feed.
            self.start.position = head;
        }
        let cursors = self.monitor.feed.cursors();
        cursors.encode_start(self.start.position, Some(&self.start.seen))
    }

    async fn heartbeat(&mut self) -> pb::WatchResponse {
        // A database that is away has nothing new to tell; the heartbeat must go out all the same.
        let behind = if self.filter.wants_changes() {
            self.monitor
                .feed
                .backlog_after(self.start.position)
                .await
                .ok()
        } else {
            None
        };
        let (behind_changes, behind_time) = behind.unwrap_or_default();
        let heartbeat = pb::Heartbeat {
            server_time: Some(time::to_proto(entity::now())),
            behind_changes,
            behind: Some(time::duration_to_proto(behind_time)),
            history_id: self.monitor.feed.history_id(),
        };
        pb::WatchResponse {
            cursor: self.cursor(),
            ..response(Update::Heartbeat(heartbeat))
        }
    }

    /// The newest sample of every GPU of which there is a newer one than was sent.
    fn new_gpu_stats(&mut self) -> Vec<Encoded> {
        let mut messages = Vec::new();
        for reading in self.monitor.gpus.readings() {
            let uuid = reading.stats.gpu_uuid.as_deref().unwrap_or_default();
            let sent = self.sent.get(uuid).copied();
            if !self.filter.wants_gpu(uuid) || sent.is_some_and(|sent| sent >= reading.number) {
                continue;
            }
            let skipped = sent.map_or(0, |sent| reading.number - sent - 1);
            self.sent.insert(uuid.to_string(), reading.number);
            let own = pb::WatchResponse {
                cursor: self.cursor(),
                gpu_stats_skipped: i64::try_from(skipped).unwrap_or(i64::MAX),
                ..Default::default()
            };
            messages.push(Encoded {
                shared: reading.encoded(),
                own: own.encode_to_vec().into(),
            });
        }
        messages
    }
}

fn response(update: Update) -> pb::WatchResponse {
    pb::WatchResponse {
        update: Some(update),
        ..Default::default()
    }
}

fn encode(response: &pb::WatchResponse) -> Encoded {
    Encoded {
        shared: response.encode_to_vec().into(),
        own: Bytes::new(),
    }
}
