//! Wakeups of the dispatcher: jobs are claimed as soon as they wait, without polling the table.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

use super::partition::{Partition, QueuePosition};
use crate::entity::job;

/// Maximum number of jobs remembered as queued by this process. The feed reports the same jobs again.
const MAX_OWN_JOBS: usize = 50_000;

/// A job and its version, as queued.
type JobVersion = (Uuid, i32);

/// Wakes the dispatcher of this process and collects the reasons. Clones share the state.
#[derive(Debug, Clone, Default)]
pub(super) struct Wakeups(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
    notify: Notify,
    limits_exhausted: AtomicBool,
    changes_missed: AtomicBool,
}

/// Reasons collected since the dispatcher last took them.
#[derive(Debug, Default)]
struct Pending {
    /// First position with a newly waiting job, by partition.
    waiting: HashMap<Partition, QueuePosition>,
    /// Queues with ended jobs or changed settings.
    freed: HashSet<String>,
    own: HashSet<JobVersion>,
    /// Members of `own`, oldest first.
    own_order: VecDeque<JobVersion>,
}

impl Wakeups {
    /// Notifies the dispatcher of jobs queued by this process.
    pub(super) fn notify_queued<'a>(&self, jobs: impl IntoIterator<Item = &'a job::Model>) {
        let mut pending = self.0.pending.lock();
        for job in jobs {
            let version = (job.id, job.version_id);
            if pending.own.insert(version) {
                pending.own_order.push_back(version);
            }
            if let Some((partition, position)) = Partition::of(job) {
                pending.record(partition, position);
            }
        }
        while pending.own_order.len() > MAX_OWN_JOBS
            && let Some(version) = pending.own_order.pop_front()
        {
            pending.own.remove(&version);
        }
        drop(pending);
        self.notify();
    }

    /// Notifies the dispatcher of a queued job read from the feed. Jobs of this process are ignored: the dispatcher
    /// has been notified of them already.
    pub(super) fn notify_observed(&self, version: JobVersion, partition: Partition, position: QueuePosition) {
        let mut pending = self.0.pending.lock();
        if !pending.own.contains(&version) {
            pending.record(partition, position);
            drop(pending);
            self.notify();
        }
    }

    /// Notifies the dispatcher of a queue with ended jobs or changed settings.
    pub(super) fn notify_freed(&self, queue: &str) {
        let mut pending = self.0.pending.lock();
        if !pending.freed.contains(queue) {
            pending.freed.insert(queue.to_string());
        }
        drop(pending);
        self.notify();
    }

    /// Notifies the dispatcher of ended jobs of a queue, if exhausted limits keep other jobs waiting.
    pub(super) fn notify_ended(&self, queue: &str) {
        if self.0.limits_exhausted.load(Ordering::Relaxed) {
            self.notify_freed(queue);
        }
    }

    /// Records whether exhausted limits keep jobs waiting.
    pub(super) fn set_limits_exhausted(&self, exhausted: bool) {
        self.0.limits_exhausted.store(exhausted, Ordering::Relaxed);
    }

    /// Notifies the dispatcher of missed changes. The database may have been replaced by an older copy, so everything
    /// known about waiting jobs may be wrong.
    pub(super) fn notify_missed(&self) {
        let mut pending = self.0.pending.lock();
        // An older copy of the database assigns the same versions again.
        pending.own.clear();
        pending.own_order.clear();
        drop(pending);
        self.0.changes_missed.store(true, Ordering::Release);
        self.notify();
    }

    /// Returns true if changes of jobs were missed since the last call.
    pub(super) fn take_missed(&self) -> bool {
        self.0.changes_missed.swap(false, Ordering::AcqRel)
    }

    /// Wakes the dispatcher without a recorded reason.
    pub(super) fn notify(&self) {
        self.0.notify.notify_one();
    }

    /// Takes the partitions with newly waiting jobs, and the queues with freed capacity or changed settings.
    pub(super) fn take_pending(&self) -> (HashMap<Partition, QueuePosition>, HashSet<String>) {
        let mut pending = self.0.pending.lock();
        (std::mem::take(&mut pending.waiting), std::mem::take(&mut pending.freed))
    }

    /// Waits for the next notification.
    pub(super) async fn notified(&self) {
        self.0.notify.notified().await;
    }
}

impl Pending {
    fn record(&mut self, partition: Partition, position: QueuePosition) {
        let first = self.waiting.entry(partition).or_insert(position);
        *first = (*first).min(position);
    }
}
