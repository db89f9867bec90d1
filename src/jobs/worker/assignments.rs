//! Jobs assigned to the worker streams of this process, for the delivery of changes made by others.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    feed::{self, FeedUpdate, Position},
    jobs::{partition::Partition, wakeups::Wakeups},
    monitor::{Announcement, Feed},
    pb::{self, JobChangeKind, watch_response::Update},
    rpc::time,
};

/// Change of a job, for the stream of the worker holding the job.
#[derive(Debug, Clone)]
pub(crate) enum AssignmentUpdate {
    /// The cancellation of the job was requested.
    Cancel { id: Uuid, reason: String, actor: String },
    /// The attempt may have ended; the lease must be checked.
    LeaseEnded(Uuid),
    /// Changes were missed; every lease must be checked.
    ChangesMissed,
}

/// Streams by the id of an assigned job. Clones share the map.
#[derive(Debug, Clone, Default)]
pub(crate) struct Assignments(Arc<Mutex<HashMap<Uuid, mpsc::UnboundedSender<AssignmentUpdate>>>>);

impl Assignments {
    /// Assigns a job to a stream.
    pub(crate) fn add(&self, id: Uuid, stream: &mpsc::UnboundedSender<AssignmentUpdate>) {
        self.by_job().insert(id, stream.clone());
    }

    /// Removes a job from a stream.
    pub(crate) fn remove(&self, id: Uuid, stream: &mpsc::UnboundedSender<AssignmentUpdate>) {
        let mut by_job = self.by_job();
        // Another stream may hold the job by now.
        if by_job.get(&id).is_some_and(|other| other.same_channel(stream)) {
            by_job.remove(&id);
        }
    }

    fn by_job(&self) -> MutexGuard<'_, HashMap<Uuid, mpsc::UnboundedSender<AssignmentUpdate>>> {
        self.0.lock()
    }

    /// Follows the feed until shutdown: delivers changes to streams, and notifies the dispatcher of jobs queued by
    /// others.
    pub(crate) async fn follow(self, wakeups: Wakeups, feed: Feed, from: Position, shutdown: CancellationToken) {
        let handle = |update| {
            self.handle_update(update, &wakeups);
            std::future::ready(())
        };
        feed::follow(feed, from, shutdown, handle).await;
    }

    fn handle_update(&self, update: FeedUpdate<Announcement>, wakeups: &Wakeups) {
        let FeedUpdate::Changes(entries) = update else {
            self.notify_missed();
            wakeups.notify_missed();
            return;
        };
        for entry in &entries {
            let update = &entry.item.update;
            if let Some(Update::JobChanges(changes)) = update {
                for change in &changes.changes {
                    self.handle_change(change, wakeups);
                }
            }
            if let Some(Update::JobQueue(change)) = update
                && let Some(queue) = &change.job_queue
            {
                wakeups.notify_freed(&queue.name);
            }
            if entry.item.is_unreadable(pb::Topic::Jobs) {
                // The affected jobs are unknown. The next sweep of the dispatcher finds the waiting ones.
                self.notify_missed();
            }
        }
    }

    fn notify_missed(&self) {
        for stream in self.by_job().values() {
            let _ = stream.send(AssignmentUpdate::ChangesMissed);
        }
    }

    fn handle_change(&self, change: &pb::JobChange, wakeups: &Wakeups) {
        let (Some(job), Ok(kind)) = (&change.job, JobChangeKind::try_from(change.kind)) else {
            return;
        };
        let ends_attempt = match kind {
            JobChangeKind::Unspecified | JobChangeKind::Started | JobChangeKind::Progress | JobChangeKind::Existing => {
                return;
            }
            JobChangeKind::Created => false,
            JobChangeKind::CancelRequested => {
                self.send_update(&job.id, |id| AssignmentUpdate::Cancel {
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
        if ends_attempt {
            self.send_update(&job.id, AssignmentUpdate::LeaseEnded);
        }
        if ends_attempt && let Some(queue) = &job.queue_name {
            wakeups.notify_ended(queue);
        }
        if job.status == i32::from(pb::JobStatus::Queued)
            && let (Ok(id), Some(at), Some(queue)) = (job.id.parse(), job.scheduled_at, &job.queue_name)
            && let Ok(at) = time::from_proto("scheduled_at", at)
        {
            let partition = Partition {
                queue: queue.clone(),
                job_type: job.job_type.clone(),
                priority: job.priority.unwrap_or_default(),
                key: job.concurrency_key.clone(),
            };
            wakeups.notify_observed((id, job.version_id), partition, (at, id));
        }
    }

    fn send_update(&self, id: &str, update: impl Fn(Uuid) -> AssignmentUpdate) {
        let by_job = self.by_job();
        // Most processes hold none of the changed jobs.
        if by_job.is_empty() {
            return;
        }
        if let Ok(id) = id.parse::<Uuid>()
            && let Some(stream) = by_job.get(&id)
        {
            let _ = stream.send(update(id));
        }
    }
}
