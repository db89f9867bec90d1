//! Monitor: the stream of one subscriber, with heartbeats, changes and GPU stats.

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
    announcement::{Announcement, Feed},
    filter::Filter,
    snapshot::{Snapshot, Snapshots},
    watch_slots::WatchSlots,
    wire::EncodedResponse,
};
use crate::{
    entity,
    error::{Error, Result},
    feed::{Entry, Start, retention::Retention},
    gpu::LiveGpus,
    pb::{self, WatchStart, watch_response::Update},
    rpc::time,
};

/// Bytes appended to the last change of a transaction.
static COMMIT_END: LazyLock<Bytes> = LazyLock::new(|| {
    let end = pb::WatchResponse { commit_end: true, ..Default::default() };
    end.encode_to_vec().into()
});

/// Interval of heartbeats if the request contains none.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(5);

/// Bounds of the requested interval of heartbeats.
const HEARTBEAT_RANGE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(5);

/// Limits of the monitor, and the retention of the feed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Limit of open watches.
    pub slots: WatchSlots,
    /// Retention of the feed.
    pub retention: Retention,
}

/// Sends changes and live GPU stats to subscribers. Clones share all state.
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
    /// Creates a monitor of the feed and the GPUs.
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

    /// Number of open watches and worker streams, including watches of jobs.
    pub fn watches(&self) -> usize {
        self.settings.slots.in_use()
    }

    /// Upper bound of open watches and worker streams.
    pub fn max_watches(&self) -> usize {
        self.settings.slots.limit()
    }

    /// Number of responses sent on all watches.
    pub fn sent(&self) -> &IntCounter {
        &self.sent
    }

    /// Starts a watch.
    pub(super) async fn watch(
        &self,
        request: pb::WatchRequest,
    ) -> Result<impl Stream<Item = Result<EncodedResponse, Status>> + Send + use<>> {
        let permit = self.settings.slots.acquire()?;
        let filter = Filter::parse(&request)?;
        let heartbeat = heartbeat_interval(request.heartbeat_interval)?;
        let (start, snapshot) = self.start(&request).await?;
        let watch = Watch { monitor: self.clone(), filter, start, held: None, sent: HashMap::new(), _permit: permit };
        Ok(watch.stream(heartbeat, snapshot))
    }

    /// Position at which the watch starts, and its snapshot, if requested.
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

    /// Current state and retention of the feed.
    pub(super) async fn feed_status(&self) -> Result<pb::GetFeedStatusResponse> {
        let status = self.feed.status().await?;
        let cursors = self.feed.cursors();
        let Retention { max_age, max_changes } = self.settings.retention;
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

/// Parses the requested interval of heartbeats. 5 s if absent.
pub fn heartbeat_interval(interval: Option<prost_types::Duration>) -> Result<Duration> {
    let Some(interval) = interval else {
        return Ok(DEFAULT_HEARTBEAT);
    };
    time::duration("heartbeat_interval", interval, &HEARTBEAT_RANGE)
}

/// Next step of a watch.
enum Step {
    Heartbeat,
    GpuStats,
    Changes(Result<Vec<Arc<Entry<Announcement>>>>),
    End,
}

/// Subscriber with its position and filter.
struct Watch {
    monitor: Monitor,
    filter: Filter,
    /// Position up to which the subscriber has seen the feed.
    start: Start,
    /// Last included change, held back until it is known whether a change of the same transaction
    /// follows.
    held: Option<Arc<Entry<Announcement>>>,
    /// Number of the last sent sample of each GPU.
    sent: HashMap<String, u64>,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    /// Nothing is read ahead for the subscriber. While the subscriber does not read, this stream is
    /// not polled, and its only cost is its slot.
    ///
    /// Rare futures are boxed, because otherwise every subscriber reserves memory for them.
    fn stream(
        mut self,
        heartbeat: Duration,
        snapshot: Option<Arc<Snapshot>>,
    ) -> impl Stream<Item = Result<EncodedResponse, Status>> + Send {
        try_stream! {
            let mut sampled = self.monitor.gpus.changed();
            if let Some(snapshot) = snapshot {
                let mut heartbeat = Box::pin(self.heartbeat()).await;
                heartbeat.cursor.clear();
                yield encode(&heartbeat);
                for await message in Box::pin(self.snapshot_messages(snapshot)) {
                    yield message?;
                }
            } else {
                yield encode(&Box::pin(self.heartbeat()).await);
                // Existing samples are new to this subscriber.
                sampled.mark_changed();
            }
            let mut heartbeats = interval_at(Instant::now() + heartbeat, heartbeat);
            heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let (has_changes, has_gpu_stats) = (self.filter.includes_changes(), self.filter.includes_gpu_stats());
            let shutdown = self.monitor.shutdown.clone();
            let feed = self.monitor.feed.clone();

            loop {
                // The rest of a transaction is available, so the stream does not wait for anything
                // else.
                let is_between_changes = self.held.is_none();
                let step = tokio::select! {
                    // Rare events have priority, so that a busy feed cannot delay them.
                    biased;
                    () = shutdown.cancelled() => Step::End,
                    _ = heartbeats.tick(), if is_between_changes => Step::Heartbeat,
                    Ok(()) = sampled.changed(), if is_between_changes && has_gpu_stats => Step::GpuStats,
                    entries = feed.after(self.start.position), if has_changes => Step::Changes(entries),
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
                            if self.includes(&entry)
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

    /// Messages of the snapshot, followed by the end of the snapshot.
    fn snapshot_messages(&mut self, snapshot: Arc<Snapshot>) -> impl Stream<Item = Result<EncodedResponse>> + Send {
        let own = |shared: &Bytes| EncodedResponse { shared: shared.clone(), own: Bytes::new() };
        try_stream! {
            let mut end = pb::SnapshotEnd::default();
            let live = self.monitor.gpus.readings();
            let stored_only = snapshot.gpu_stats.iter().filter(|stored| {
                live.iter().all(|live| live.stats.gpu_uuid != stored.gpu_uuid)
            });
            for stats in stored_only {
                let uuid = stats.gpu_uuid.as_deref().unwrap_or_default();
                if self.filter.includes_gpu_stats() && self.filter.includes_gpu(uuid) {
                    end.gpu_stats += 1;
                    yield encode(&response(Update::GpuStats(stats.clone())));
                }
            }
            for reading in &live {
                let uuid = reading.stats.gpu_uuid.clone().unwrap_or_default();
                if self.filter.includes_gpu_stats() && self.filter.includes_gpu(&uuid) {
                    end.gpu_stats += 1;
                    self.sent.insert(uuid, reading.number);
                    yield own(&reading.encoded());
                }
            }
            let mut index = 0;
            while let Some(alert) = snapshot.alerts.item(index)? {
                index += 1;
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

    fn includes(&self, entry: &Entry<Announcement>) -> bool {
        !self.start.seen.contains(entry.position.xid) && self.filter.matches(entry.item.update.as_ref())
    }

    /// Encoded change, with the bytes for this subscriber.
    fn change(&self, entry: &Entry<Announcement>, commit_end: bool) -> EncodedResponse {
        let seen = &self.start.seen;
        let own = if seen.matters_after(entry.position) {
            // For a repeated field, the last value counts.
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
        EncodedResponse { shared: entry.item.encoded.clone(), own }
    }

    /// Cursor for a response that is not part of the feed.
    fn cursor(&mut self) -> String {
        let head = self.monitor.feed.head();
        if !self.filter.includes_changes() && head > self.start.position {
            // The filter includes no changes, so the position may skip all of them.
            self.start.position = head;
        }
        let cursors = self.monitor.feed.cursors();
        cursors.encode_start(self.start.position, Some(&self.start.seen))
    }

    async fn heartbeat(&mut self) -> pb::WatchResponse {
        // The heartbeat must be sent even while the database is away.
        let lag = if self.filter.includes_changes() {
            self.monitor.feed.backlog_after(self.start.position).await.ok()
        } else {
            None
        };
        let (behind_changes, lag_time) = lag.unwrap_or_default();
        let heartbeat = pb::Heartbeat {
            server_time: Some(time::to_proto(entity::now())),
            behind_changes,
            behind: Some(time::duration_to_proto(lag_time)),
            history_id: self.monitor.feed.history_id(),
        };
        pb::WatchResponse { cursor: self.cursor(), ..response(Update::Heartbeat(heartbeat)) }
    }

    /// Newest sample of every GPU with samples since the last sent one.
    fn new_gpu_stats(&mut self) -> Vec<EncodedResponse> {
        let mut messages = Vec::new();
        for reading in self.monitor.gpus.readings() {
            let uuid = reading.stats.gpu_uuid.as_deref().unwrap_or_default();
            let sent = self.sent.get(uuid).copied();
            if !self.filter.includes_gpu(uuid) || sent.is_some_and(|sent| sent >= reading.number) {
                continue;
            }
            let skipped = sent.map_or(0, |sent| reading.number - sent - 1);
            self.sent.insert(uuid.to_string(), reading.number);
            let own = pb::WatchResponse {
                cursor: self.cursor(),
                gpu_stats_skipped: i64::try_from(skipped).unwrap_or(i64::MAX),
                ..Default::default()
            };
            messages.push(EncodedResponse { shared: reading.encoded(), own: own.encode_to_vec().into() });
        }
        messages
    }
}

fn response(update: Update) -> pb::WatchResponse {
    pb::WatchResponse { update: Some(update), ..Default::default() }
}

fn encode(response: &pb::WatchResponse) -> EncodedResponse {
    EncodedResponse { shared: response.encode_to_vec().into(), own: Bytes::new() }
}
