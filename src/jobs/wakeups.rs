//! Rung when jobs come to wait, so that they are claimed at once.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use uuid::Uuid;

use super::dispatch::partitions::{Line, Spot};
use crate::entity::job;

/// How many jobs are remembered for which this process has rung by itself.
const OWN: usize = 50_000;

/// Rung when jobs come to wait. Clones are the same bell.
#[derive(Debug, Clone, Default)]
pub(super) struct Bell(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    heard: Mutex<Heard>,
    rung: Notify,
    ends: AtomicBool,
    missed: AtomicBool,
}

/// What was heard since it was last asked.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// The first place of each line in which something has come to wait.
    pub waiting: HashMap<Line, Spot>,
    /// Queues whose jobs have ended, or whose settings have changed.
    pub freed: HashSet<String>,
    own: HashSet<(Uuid, i32)>,
    order: VecDeque<(Uuid, i32)>,
}

impl Bell {
    /// Jobs were queued by this process.
    pub(super) fn queued<'a>(&self, jobs: impl IntoIterator<Item = &'a job::Model>) {
        let mut heard = self.heard();
        for job in jobs {
            let mark = (job.id, job.version_id);
            if heard.own.insert(mark) {
                heard.order.push_back(mark);
            }
            if let Some((line, spot)) = Line::of(job) {
                heard.note(line, spot);
            }
        }
        while heard.order.len() > OWN
            && let Some(mark) = heard.order.pop_front()
        {
            heard.own.remove(&mark);
        }
        drop(heard);
        self.0.rung.notify_one();
    }

    /// The feed tells of a job that was queued, by whatever process.
    pub(super) fn told(&self, mark: (Uuid, i32), line: Line, spot: Spot) {
        let mut heard = self.heard();
        if !heard.own.contains(&mark) {
            heard.note(line, spot);
            drop(heard);
            self.0.rung.notify_one();
        }
    }

    /// Jobs of this queue have ended, or its settings have changed.
    pub(super) fn freed(&self, queue: &str) {
        let mut heard = self.heard();
        if !heard.freed.contains(queue) {
            heard.freed.insert(queue.to_string());
        }
        drop(heard);
        self.0.rung.notify_one();
    }

    /// Jobs of this queue have ended: its limits may let others begin, if somebody waits for that.
    pub(super) fn ended(&self, queue: &str) {
        if self.0.ends.load(Ordering::Relaxed) {
            self.freed(queue);
        }
    }

    /// Whether somebody waits for jobs to end.
    pub(super) fn want_ends(&self, want: bool) {
        self.0.ends.store(want, Ordering::Relaxed);
    }

    /// Changes of jobs were missed, perhaps because the database was replaced by an older copy: what is known of
    /// waiting jobs may be wrong.
    pub(super) fn missed(&self) {
        let mut heard = self.heard();
        // Versions of jobs may be given again.
        heard.own.clear();
        heard.order.clear();
        drop(heard);
        self.0.missed.store(true, Ordering::Release);
        self.0.rung.notify_one();
    }

    /// Whether changes of jobs were missed since it was last asked.
    pub(super) fn take_missed(&self) -> bool {
        self.0.missed.swap(false, Ordering::AcqRel)
    }

    /// There is something to look at.
    pub(super) fn ring(&self) {
        self.0.rung.notify_one();
    }

    /// What was heard since it was last asked.
    pub(super) fn take(&self) -> (HashMap<Line, Spot>, HashSet<String>) {
        let mut heard = self.heard();
        (
            std::mem::take(&mut heard.waiting),
            std::mem::take(&mut heard.freed),
        )
    }

    /// Waits until it is rung.
    pub(super) async fn rung(&self) {
        self.0.rung.notified().await;
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        let heard = self.0.heard.lock();
        heard
    }
}

impl Heard {
    fn note(&mut self, line: Line, spot: Spot) {
        let first = self.waiting.entry(line).or_insert(spot);
        *first = (*first).min(spot);
    }
}
