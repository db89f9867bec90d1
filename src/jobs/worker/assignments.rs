//! The jobs that workers have on streams of this process, so that they can be told what others do to them.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    feed::{FeedUpdate, Follower, Position, Topic},
    jobs::{dispatch::partitions::Line, wakeups::Bell},
    monitor::Feed,
    pb::{self, JobChangeKind, watch_response::Update},
    rpc::time,
};

/// What a worker is told of a job that it has.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    /// Somebody has asked for it to be cancelled.
    Cancel {
        id: Uuid,
        reason: String,
        actor: String,
    },
    /// The worker may have it no more.
    Moved(Uuid),
    /// Changes were missed: it has to be looked at what became of all jobs.
    Missed,
}

/// Where streams hear of their jobs. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flights(Arc<Mutex<HashMap<Uuid, mpsc::UnboundedSender<Told>>>>);

impl Flights {
    /// A stream has this job.
    pub(crate) fn add(&self, id: Uuid, stream: &mpsc::UnboundedSender<Told>) {
        self.flights().insert(id, stream.clone());
    }

    /// A stream has it no more.
    pub(crate) fn remove(&self, id: Uuid, stream: &mpsc::UnboundedSender<Told>) {
        let mut flights = self.flights();
        // Another stream may have it by now.
        if flights
            .get(&id)
            .is_some_and(|other| other.same_channel(stream))
        {
            flights.remove(&id);
        }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Uuid, mpsc::UnboundedSender<Told>>> {
        self.0.lock()
    }

    /// Hears what the feed tells of jobs, until shutdown, and rings the bell for those that others have queued.
    pub(crate) async fn follow(
        self,
        bell: Bell,
        feed: Feed,
        from: Position,
        shutdown: CancellationToken,
    ) {
        let mut follower = Follower::new(feed, from);
        let following = async {
            loop {
                let FeedUpdate::Changes(entries) = follower.next().await else {
                    self.tell_all_missed();
                    bell.missed();
                    continue;
                };
                for entry in &entries {
                    let update = &entry.item.update;
                    if let Some(Update::JobChanges(changes)) = update {
                        for change in &changes.changes {
                            self.hear(change, &bell);
                        }
                    }
                    if let Some(Update::JobQueue(change)) = update
                        && let Some(queue) = &change.job_queue
                    {
                        bell.freed(&queue.name);
                    }
                    if entry.item.is_unreadable(Topic::Jobs) {
                        // The jobs that it is about are unknown. Those that wait are found by the sweep.
                        self.tell_all_missed();
                    }
                }
            }
        };
        shutdown.run_until_cancelled(following).await;
    }

    fn tell_all_missed(&self) {
        for stream in self.flights().values() {
            let _ = stream.send(Told::Missed);
        }
    }

    fn hear(&self, change: &pb::JobChange, bell: &Bell) {
        let (Some(job), Ok(kind)) = (&change.job, JobChangeKind::try_from(change.kind)) else {
            return;
        };
        let ends = match kind {
            JobChangeKind::Unspecified
            | JobChangeKind::Started
            | JobChangeKind::Progress
            | JobChangeKind::Existing => return,
            JobChangeKind::Created => false,
            JobChangeKind::CancelRequested => {
                self.tell(&job.id, |id| Told::Cancel {
                    id,
                    reason: change.reason.clone(),
                    actor: change.actor.clone(),
                });
                return;
            }
            JobChangeKind::Completed
            | JobChangeKind::Retrying
            | JobChangeKind::Failed
            | JobChangeKind::Rescued
            | JobChangeKind::Released
            | JobChangeKind::Snoozed
            | JobChangeKind::Cancelled
            | JobChangeKind::Retried
            | JobChangeKind::Deleted => true,
        };
        if ends {
            self.tell(&job.id, Told::Moved);
        }
        if ends && let Some(queue) = &job.queue_name {
            bell.ended(queue);
        }
        if job.status == i32::from(pb::JobStatus::Queued)
            && let (Ok(id), Some(at), Some(queue)) =
                (job.id.parse(), job.scheduled_at, &job.queue_name)
            && let Ok(at) = time::from_proto("scheduled_at", at)
        {
            let line = Line {
                queue: queue.clone(),
                job_type: job.job_type.clone(),
                priority: job.priority.unwrap_or_default(),
                key: job.concurrency_key.clone(),
            };
            bell.told((id, job.version_id), line, (at, id));
        }
    }

    fn tell(&self, id: &str, told: impl Fn(Uuid) -> Told) {
        let flights = self.flights();
        // Most processes have none of the jobs that they hear of.
        if flights.is_empty() {
            return;
        }
        if let Ok(id) = id.parse::<Uuid>()
            && let Some(stream) = flights.get(&id)
        {
            let _ = stream.send(told(id));
        }
    }
}
