//! Watches of jobs, on top of the feed.

use std::{sync::Arc, time::Duration};

use async_stream::try_stream;
use futures_util::Stream;
use prost::Message;
use sea_orm::{ColumnTrait, QueryFilter};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tonic::Status;
use uuid::Uuid;

use self::{
    filter::{WatchFilter, is_final},
    snapshots::{JobSnapshot, existing_change},
    source::WatchSource,
};
use super::query::list::light_jobs;
use crate::{
    db::row,
    entity::{
        self,
        job::{self, Column},
    },
    error::{Error, Result},
    feed::Start,
    monitor::heartbeat_interval,
    pb::{self, WatchJobsResponse, watch_jobs_response::Update},
    rpc::{check, time},
};

pub(super) mod filter;
pub(super) mod snapshots;
pub(super) mod source;
pub(super) mod tail;

/// Watch of one job or of many jobs.
pub(super) struct Watch {
    source: WatchSource,
    filter: WatchFilter,
    /// Position up to which the feed has been read.
    start: Start,
    /// Next update to send, held back until the position of its transaction in the feed is known.
    pending: Option<Update>,
    /// First response.
    first: FirstResponse,
    /// True for a watch of one job, which ends with the job.
    is_single: bool,
    /// Feed position at which the job had ended. The watch ends behind the position.
    job_end: Option<Start>,
    /// True if an undecodable change may have ended the job, so the job must be read.
    must_reread: bool,
    /// The watched job, if deleted when the resumed watch began.
    missing: Option<Uuid>,
    heartbeat: Duration,
    _place: OwnedSemaphorePermit,
}

/// First response of a watch.
enum FirstResponse {
    Heartbeat,
    Job(Box<pb::JobChange>),
    Snapshot(Arc<JobSnapshot>),
}

/// Event in the life of a watch.
enum WatchEvent<T> {
    Heartbeat,
    Changes(T),
    End,
}

impl Watch {
    /// Starts a watch of one job.
    pub(super) async fn of_one(source: &WatchSource, request: pb::WatchJobRequest) -> Result<Self> {
        let place = source.places.acquire()?;
        let id = check::uuid("id", &request.id)?;
        let heartbeat = heartbeat_interval(request.heartbeat_interval)?;
        let resumed = match request.cursor.as_str() {
            "" => None,
            cursor => Some(source.feed.resume(cursor).await?),
        };
        let (now, job) = read_job(source, id).await?;
        let is_over = job.as_ref().is_none_or(|job| job.status.is_finished());
        let missing = job.is_none().then_some(id);
        let (start, first, job_end) = if let Some(start) = resumed {
            (start, FirstResponse::Heartbeat, is_over.then_some(now))
        } else {
            let job = existing_change(row::require(job, "job", id)?);
            (now, FirstResponse::Job(job.into()), None)
        };
        Ok(Self {
            source: source.clone(),
            filter: WatchFilter::for_job(id, request.logs),
            start,
            pending: None,
            first,
            is_single: true,
            job_end,
            must_reread: false,
            missing,
            heartbeat,
            _place: place,
        })
    }

    /// Starts a watch of many jobs.
    pub(super) async fn of_many(source: &WatchSource, request: pb::WatchJobsRequest) -> Result<Self> {
        let place = source.places.acquire()?;
        let heartbeat = heartbeat_interval(request.heartbeat_interval)?;
        let job_filter = request.filter.unwrap_or_default();
        let filter = WatchFilter::parse(&job_filter, request.logs)?;
        let (start, first) = if request.snapshot {
            if !request.cursor.is_empty() {
                return Err(Error::invalid("snapshot", "must be left out with a cursor"));
            }
            let snapshot = source.snapshots.take(&job_filter).await?;
            (snapshot.start.clone(), FirstResponse::Snapshot(snapshot))
        } else if request.cursor.is_empty() {
            (source.feed.now().await?, FirstResponse::Heartbeat)
        } else {
            (source.feed.resume(&request.cursor).await?, FirstResponse::Heartbeat)
        };
        Ok(Self {
            source: source.clone(),
            filter,
            start,
            pending: None,
            first,
            is_single: false,
            job_end: None,
            must_reread: false,
            missing: None,
            heartbeat,
            _place: place,
        })
    }

    /// Responses of the watch. Nothing is read ahead: while the client does not read, the stream is not polled and
    /// costs only its place.
    pub(super) fn stream(mut self) -> impl Stream<Item = Result<WatchJobsResponse, Status>> + Send {
        try_stream! {
            let shutdown = self.source.shutdown.clone();
            match std::mem::replace(&mut self.first, FirstResponse::Heartbeat) {
                FirstResponse::Heartbeat => yield self.heartbeat(),
                FirstResponse::Job(change) => {
                    let is_over = is_final(&change);
                    yield self.respond(Update::Job(*change));
                    if is_over {
                        return;
                    }
                }
                FirstResponse::Snapshot(snapshot) => {
                    let (mut sent, mut index) = (0, 0);
                    while let Some(piece) = snapshot.jobs.item(index)? {
                        index += 1;
                        let piece = pb::JobChanges::decode(piece).map_err(Error::internal)?;
                        for change in piece.changes {
                            if shutdown.is_cancelled() {
                                Err(Error::ShuttingDown)?;
                            }
                            sent += 1;
                            yield WatchJobsResponse { cursor: String::new(), update: Some(Update::Job(change)) };
                        }
                    }
                    yield self.respond(Update::SnapshotEnd(sent));
                }
            }
            let mut heartbeats = interval_at(Instant::now() + self.heartbeat, self.heartbeat);
            heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let feed = self.source.feed.clone();
            let mut has_ended = false;

            loop {
                if std::mem::take(&mut self.must_reread) && self.is_single {
                    Box::pin(self.reread_end()).await?;
                }
                if Box::pin(self.is_over()).await {
                    break;
                }
                // The rest of a transaction is available without waiting.
                let is_between_commits = self.pending.is_none();
                let event = tokio::select! {
                    // Rare events come first, so a busy feed cannot starve them.
                    biased;
                    () = shutdown.cancelled() => WatchEvent::End,
                    _ = heartbeats.tick(), if is_between_commits => WatchEvent::Heartbeat,
                    entries = feed.after(self.start.position) => WatchEvent::Changes(entries),
                };
                feed.check_current(self.start.position)?;
                match event {
                    WatchEvent::Heartbeat => yield self.heartbeat(),
                    WatchEvent::Changes(entries) => {
                        for entry in entries? {
                            self.start.position = entry.position;
                            if self.is_past_end() {
                                break;
                            }
                            if !self.start.seen.contains(entry.position.xid) {
                                for update in self.filter.matching_updates(entry.item.update.as_ref()) {
                                    self.must_reread |= matches!(update, Update::Unreadable(_));
                                    has_ended |= self.is_single
                                        && matches!(&update, Update::Job(change) if is_final(change));
                                    if let Some(pending) = self.pending.replace(update) {
                                        yield WatchJobsResponse { cursor: String::new(), update: Some(pending) };
                                    }
                                }
                            }
                            if entry.ends_commit && let Some(pending) = self.pending.take() {
                                yield self.respond(pending);
                                if has_ended {
                                    return;
                                }
                            }
                        }
                    }
                    WatchEvent::End => {
                        if let Some(pending) = self.pending.take() {
                            yield self.respond(pending);
                        }
                        yield self.heartbeat();
                        Err(Error::ShuttingDown)?;
                    }
                }
            }
            if let Some(id) = self.missing {
                // The job was deleted before any change could be sent.
                row::require(None::<()>, "job", id)?;
            }
        }
    }

    /// Reads the job after an undecodable change, and records its end.
    async fn reread_end(&mut self) -> Result<()> {
        if let Some(id) = self.filter.job_id() {
            let (now, job) = read_job(&self.source, id).await?;
            if job.is_none_or(|job| job.status.is_finished()) {
                self.job_end.get_or_insert(now);
            }
        }
        Ok(())
    }

    /// Returns true if no further update can follow.
    async fn is_over(&self) -> bool {
        if self.is_past_end() {
            return true;
        }
        let position = self.start.position;
        if self.job_end.is_none() || position < self.source.feed.head() {
            return false;
        }
        // After a database failure, the next heartbeat asks again.
        let behind = self.source.feed.stored_backlog_after(position).await;
        behind.is_ok_and(|(changes, _)| changes == 0)
    }

    /// Returns true if every change committed before the end of the job has been read.
    fn is_past_end(&self) -> bool {
        let position = self.start.position;
        self.job_end.as_ref().is_some_and(|job_end| {
            // On PostgreSQL, transactions in progress may commit changes at earlier positions.
            let unsettled = job_end.seen.matters_after(position);
            position > job_end.position && !unsettled
        })
    }

    /// Response with a cursor for resumption.
    fn respond(&self, update: Update) -> WatchJobsResponse {
        let (cursors, start) = (self.source.feed.cursors(), &self.start);
        WatchJobsResponse { cursor: cursors.encode_start(start.position, Some(&start.seen)), update: Some(update) }
    }

    fn heartbeat(&self) -> WatchJobsResponse {
        self.respond(Update::Heartbeat(time::to_proto(entity::now())))
    }
}

/// Reads a job and the feed position of the snapshot.
async fn read_job(source: &WatchSource, id: Uuid) -> Result<(Start, Option<job::Model>)> {
    let tx = source.db.snapshot().await?;
    let now = source.feed.now_in(&tx).await?;
    let job = light_jobs().filter(Column::Id.eq(id)).one(&tx).await?;
    tx.commit().await?;
    Ok((now, job))
}
