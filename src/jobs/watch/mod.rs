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
    filter::{Wanted, ends},
    snapshots::{JobSnapshot, existing},
};
use super::{api::job_service::Jobs, query::list::light};
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
pub(super) mod tail;

/// A watch of jobs: where it is, and what it wants.
pub(super) struct Watch {
    jobs: Jobs,
    wanted: Wanted,
    /// Up to where it has seen the feed.
    start: Start,
    /// What it is to be sent next, until it is known whether another one of the same transaction follows.
    held: Option<Update>,
    /// What it begins with.
    first: First,
    /// Whether it ends with the job that it is of.
    of_one: bool,
    /// When it goes on: a moment at which its job was at its end, after which nothing is waited for.
    over: Option<Start>,
    /// Whether a change could not be decoded that may have been the end of its job.
    look_again: bool,
    /// The job, if it was gone at that moment.
    missing: Option<Uuid>,
    heartbeat: Duration,
    _place: OwnedSemaphorePermit,
}

/// What a watch begins with.
enum First {
    Heartbeat,
    Job(Box<pb::JobChange>),
    Snapshot(Arc<JobSnapshot>),
}

/// What a watch waited for.
enum Step<T> {
    Heartbeat,
    Changes(T),
    End,
}

impl Watch {
    /// Begins a watch of one job.
    pub(super) async fn of_one(jobs: &Jobs, request: pb::WatchJobRequest) -> Result<Self> {
        let place = jobs.places.acquire()?;
        let id = check::uuid("id", &request.id)?;
        let heartbeat = heartbeat_interval(request.heartbeat_interval)?;
        let resumed = match request.cursor.as_str() {
            "" => None,
            cursor => Some(jobs.feed.resume(cursor).await?),
        };
        let (now, job) = job_now(jobs, id).await?;
        let is_over = job.as_ref().is_none_or(|job| job.status.is_finished());
        let missing = job.is_none().then_some(id);
        let (start, first, over) = if let Some(start) = resumed {
            (start, First::Heartbeat, is_over.then_some(now))
        } else {
            let job = existing(row::found(job, "job", id)?);
            (now, First::Job(job.into()), None)
        };
        Ok(Self {
            jobs: jobs.clone(),
            wanted: Wanted::one(id, request.logs),
            start,
            held: None,
            first,
            of_one: true,
            over,
            look_again: false,
            missing,
            heartbeat,
            _place: place,
        })
    }

    /// Begins a watch of many jobs.
    pub(super) async fn of_many(jobs: &Jobs, request: pb::WatchJobsRequest) -> Result<Self> {
        let place = jobs.places.acquire()?;
        let heartbeat = heartbeat_interval(request.heartbeat_interval)?;
        let filter = request.filter.unwrap_or_default();
        let wanted = Wanted::parse(&filter, request.logs)?;
        let (start, first) = if request.snapshot {
            if !request.cursor.is_empty() {
                return Err(Error::invalid("snapshot", "must be left out with a cursor"));
            }
            let snapshot = jobs.snapshots.take(&filter).await?;
            (snapshot.start.clone(), First::Snapshot(snapshot))
        } else if request.cursor.is_empty() {
            (jobs.feed.now().await?, First::Heartbeat)
        } else {
            (jobs.feed.resume(&request.cursor).await?, First::Heartbeat)
        };
        Ok(Self {
            jobs: jobs.clone(),
            wanted,
            start,
            held: None,
            first,
            of_one: false,
            over: None,
            look_again: false,
            missing: None,
            heartbeat,
            _place: place,
        })
    }

    /// Nothing is read ahead for the client: while it does not read, this is not polled, and it costs its place.
    pub(super) fn stream(mut self) -> impl Stream<Item = Result<WatchJobsResponse, Status>> + Send {
        try_stream! {
            let shutdown = self.jobs.shutdown.clone();
            match std::mem::replace(&mut self.first, First::Heartbeat) {
                First::Heartbeat => yield self.heartbeat(),
                First::Job(change) => {
                    let is_over = ends(&change);
                    yield self.told(Update::Job(*change));
                    if is_over {
                        return;
                    }
                }
                First::Snapshot(snapshot) => {
                    let (mut sent, mut place) = (0, 0);
                    while let Some(piece) = snapshot.jobs.item(place)? {
                        place += 1;
                        let piece = pb::JobChanges::decode(piece).map_err(Error::internal)?;
                        for change in piece.changes {
                            if shutdown.is_cancelled() {
                                Err(Error::ShuttingDown)?;
                            }
                            sent += 1;
                            yield WatchJobsResponse { cursor: String::new(), update: Some(Update::Job(change)) };
                        }
                    }
                    yield self.told(Update::SnapshotEnd(sent));
                }
            }
            let mut heartbeats = interval_at(Instant::now() + self.heartbeat, self.heartbeat);
            heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let feed = self.jobs.feed.clone();
            let mut has_ended = false;

            loop {
                if std::mem::take(&mut self.look_again) && self.of_one {
                    Box::pin(self.note_end()).await?;
                }
                if Box::pin(self.is_over()).await {
                    break;
                }
                // The rest of a transaction is there: nothing else is waited for.
                let between = self.held.is_none();
                let step = tokio::select! {
                    // What comes seldom goes first, so that a busy feed cannot hold it up.
                    biased;
                    () = shutdown.cancelled() => Step::End,
                    _ = heartbeats.tick(), if between => Step::Heartbeat,
                    entries = feed.after(self.start.position) => Step::Changes(entries),
                };
                feed.check_current(self.start.position)?;
                match step {
                    Step::Heartbeat => yield self.heartbeat(),
                    Step::Changes(entries) => {
                        for entry in entries? {
                            self.start.position = entry.position;
                            if self.is_past_end() {
                                break;
                            }
                            if !self.start.seen.contains(entry.position.xid) {
                                for update in self.wanted.of(entry.item.update.as_ref()) {
                                    self.look_again |= matches!(update, Update::Unreadable(_));
                                    has_ended |= self.of_one
                                        && matches!(&update, Update::Job(change) if ends(change));
                                    if let Some(held) = self.held.replace(update) {
                                        yield WatchJobsResponse { cursor: String::new(), update: Some(held) };
                                    }
                                }
                            }
                            if entry.ends_commit && let Some(held) = self.held.take() {
                                yield self.told(held);
                                if has_ended {
                                    return;
                                }
                            }
                        }
                    }
                    Step::End => {
                        if let Some(held) = self.held.take() {
                            yield self.told(held);
                        }
                        yield self.heartbeat();
                        Err(Error::ShuttingDown)?;
                    }
                }
            }
            if let Some(id) = self.missing {
                // Nothing was heard of it before it was gone.
                row::found(None::<()>, "job", id)?;
            }
        }
    }

    /// Reads whether the job is at its end, of which a change may have told that could not be decoded.
    async fn note_end(&mut self) -> Result<()> {
        if let Some(id) = self.wanted.id() {
            let (now, job) = job_now(&self.jobs, id).await?;
            if job.is_none_or(|job| job.status.is_finished()) {
                self.over.get_or_insert(now);
            }
        }
        Ok(())
    }

    /// Whether there is nothing to come.
    async fn is_over(&self) -> bool {
        if self.is_past_end() {
            return true;
        }
        let position = self.start.position;
        if self.over.is_none() || position < self.jobs.feed.head() {
            return false;
        }
        // A database that is away is asked again with the next heartbeat.
        let behind = self.jobs.feed.left_after(position).await;
        behind.is_ok_and(|(changes, _)| changes == 0)
    }

    /// Whether it has seen all that had been committed when its job was at its end.
    fn is_past_end(&self) -> bool {
        let position = self.start.position;
        self.over.as_ref().is_some_and(|over| {
            // On PostgreSQL some of it may be settled later.
            let unsettled = over.seen.matters_after(position);
            position > over.position && !unsettled
        })
    }

    /// A response from which the client can go on.
    fn told(&self, update: Update) -> WatchJobsResponse {
        let (cursors, start) = (self.jobs.feed.cursors(), &self.start);
        WatchJobsResponse {
            cursor: cursors.encode_start(start.position, Some(&start.seen)),
            update: Some(update),
        }
    }

    fn heartbeat(&self) -> WatchJobsResponse {
        self.told(Update::Heartbeat(time::to_proto(entity::now())))
    }
}

/// A moment, and the job as it was then.
async fn job_now(jobs: &Jobs, id: Uuid) -> Result<(Start, Option<job::Model>)> {
    let tx = jobs.db.snapshot().await?;
    let now = jobs.feed.now_in(&tx).await?;
    let job = light().filter(Column::Id.eq(id)).one(&tx).await?;
    tx.commit().await?;
    Ok((now, job))
}
