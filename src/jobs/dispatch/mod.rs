//! Gives jobs to the workers of this process: one claim at a time, for all of them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};
use sea_orm::DbBackend;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use self::{
    claim::{Accepts, Claimed, Haul, Queues, Wish},
    partitions::{Line, Lines, Take},
};
use super::{state::Report, store::writer::Desk, types::LiveTypes, wakeups::Bell};
use crate::{clock, db::Db};

pub(super) mod claim;
pub(super) mod partitions;
pub(super) mod payloads;
pub(super) mod reaper;

/// How many jobs one claim takes.
const ROOM: usize = 500;

/// How often all lines are looked for in the table: what rings the bell can be lost with its process.
const SWEEP: Duration = Duration::from_secs(5);

/// It looks no more often than this many times as long as it takes.
const SHARE: u32 = 20;

/// How long to wait after a failure.
const RETRY: Duration = Duration::from_millis(250);

/// Gives jobs to workers. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Dispatcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    db: Db,
    types: LiveTypes,
    bell: Bell,
    desk: Desk,
    places: Mutex<HashMap<u64, Place>>,
    next: AtomicU64,
    /// Whether all lines are to be looked for at once.
    sweep: AtomicBool,
    shutdown: CancellationToken,
}

/// A worker.
#[derive(Debug)]
struct Place {
    /// Without what it wants.
    wish: Wish,
    /// How many jobs it can take. Below 0 after its capacity was lowered.
    want: isize,
    /// Whether it takes what it is given first, and no more.
    once: bool,
    jobs: mpsc::UnboundedSender<Vec<Claimed>>,
    /// Told when nothing is there for it.
    looked: Option<oneshot::Sender<()>>,
}

/// Where a worker's jobs come in. Those that are in it when it is dropped are given back.
#[derive(Debug)]
pub(super) struct Inbox {
    place: u64,
    dispatcher: Dispatcher,
    jobs: mpsc::UnboundedReceiver<Vec<Claimed>>,
}

impl Inbox {
    /// The next jobs.
    pub(super) async fn next(&mut self) -> Option<Vec<Claimed>> {
        self.jobs.recv().await
    }

    /// The worker can take so many jobs more, or fewer.
    pub(super) fn want(&self, change: isize) {
        if let Some(place) = self.dispatcher.places().get_mut(&self.place) {
            place.want += change;
        }
        if change > 0 {
            self.dispatcher.0.bell.ring();
        }
    }

    /// The worker takes no more.
    pub(super) fn close(&mut self) {
        self.dispatcher.places().remove(&self.place);
        self.jobs.close();
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.close();
        let mut back = Vec::new();
        while let Ok(claimed) = self.jobs.try_recv() {
            back.extend(claimed);
        }
        if !back.is_empty() {
            tokio::spawn(self.dispatcher.clone().give_back(back));
        }
    }
}

impl Dispatcher {
    pub(super) fn new(
        db: Db,
        types: LiveTypes,
        bell: Bell,
        desk: Desk,
        shutdown: CancellationToken,
    ) -> Self {
        Self(Arc::new(Shared {
            db,
            types,
            bell,
            desk,
            places: Mutex::default(),
            next: AtomicU64::new(0),
            sweep: AtomicBool::new(false),
            shutdown,
        }))
    }

    /// A worker comes, who wants so many jobs.
    pub(super) fn enter(
        &self,
        worker_id: String,
        accepts: Accepts,
        lease: Duration,
        want: usize,
    ) -> Inbox {
        self.seat(worker_id, accepts, lease, want, None)
    }

    /// A worker comes who takes what it is given first, and no more. Also gives what tells that nothing is
    /// there for it; with `now`, the table is looked at for that.
    pub(super) fn enter_once(
        &self,
        worker_id: String,
        accepts: Accepts,
        lease: Duration,
        want: usize,
        now: bool,
    ) -> (Inbox, oneshot::Receiver<()>) {
        let (looked, nothing) = oneshot::channel();
        if now && self.0.db.backend() == DbBackend::Postgres {
            // Another process may have queued something a moment ago, of which the feed has not told yet.
            self.0.sweep.store(true, Ordering::Release);
        }
        let inbox = self.seat(worker_id, accepts, lease, want, Some(looked));
        (inbox, nothing)
    }

    fn seat(
        &self,
        worker_id: String,
        accepts: Accepts,
        lease: Duration,
        want: usize,
        looked: Option<oneshot::Sender<()>>,
    ) -> Inbox {
        let place = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, jobs) = mpsc::unbounded_channel();
        let wish = Wish {
            place,
            worker_id,
            lease,
            accepts: Arc::new(accepts),
            want: 0,
        };
        let worker = Place {
            wish,
            want: want.try_into().unwrap_or(isize::MAX),
            once: looked.is_some(),
            jobs: sender,
            looked,
        };
        self.places().insert(place, worker);
        self.0.bell.ring();
        Inbox {
            place,
            dispatcher: self.clone(),
            jobs,
        }
    }

    fn places(&self) -> MutexGuard<'_, HashMap<u64, Place>> {
        let places = self.0.places.lock();
        places
    }

    /// Those who want jobs.
    fn wishes(&self) -> Vec<Wish> {
        let places = self.places();
        let wish = |place: &Place| {
            let want = usize::try_from(place.want).unwrap_or_default();
            (want > 0).then(|| Wish {
                want,
                ..place.wish.clone()
            })
        };
        places.values().filter_map(wish).collect()
    }

    /// Gives jobs to workers until shutdown.
    pub(super) async fn run(self) {
        let shutdown = self.0.shutdown.clone();
        shutdown.run_until_cancelled(self.work()).await;
    }

    async fn work(&self) {
        let (mut lines, mut queues) = (Lines::default(), Queues::default());
        let mut next_sweep = Instant::now();
        loop {
            self.hear(&mut lines, &mut queues).await;
            if self.0.bell.take_missed() {
                lines = Lines::default();
                next_sweep = Instant::now();
            }
            if self.0.sweep.swap(false, Ordering::Acquire) || Instant::now() >= next_sweep {
                let begun = Instant::now();
                match claim::heads(&self.0.db).await {
                    Ok(found) => {
                        self.read_queues(&mut queues).await;
                        lines.swept(found);
                        self.0.bell.want_ends(false);
                    }
                    Err(error) => tracing::debug!(%error, "waiting jobs cannot be looked for"),
                }
                let took = begun.elapsed();
                next_sweep = Instant::now() + SWEEP.max(took * SHARE);
                continue;
            }
            let wishes = self.wishes();
            let wanted = |line: &Line| -> usize {
                let takers = wishes.iter().filter(|wish| wish.accepts.takes(line));
                takers.map(|wish| wish.want).sum()
            };
            let now = clock::now();
            let all = wishes.iter().map(|wish| wish.want).sum();
            self.tell_those_without(&lines, &wishes, now);
            let takes = lines.choose(now, ROOM.min(all), wanted);
            if !takes.is_empty() {
                self.serve(&mut lines, &takes, &wishes, &queues, now).await;
                continue;
            }
            let due = lines.next_due(|line| wanted(line) > 0);
            let due = due.map_or(SWEEP, |due| (due - now).to_std().unwrap_or_default());
            let until_sweep = next_sweep.saturating_duration_since(Instant::now());
            let wait = due.min(until_sweep).max(Duration::from_millis(1));
            tokio::select! {
                () = self.0.bell.rung() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Tells those who do not wait that nothing is there for them.
    fn tell_those_without(&self, lines: &Lines, wishes: &[Wish], now: DateTime<Utc>) {
        let mut places = self.places();
        if self.0.sweep.load(Ordering::Acquire) {
            // Somebody has come meanwhile for whom the table is to be looked at first.
            return;
        }
        for wish in wishes {
            if let Some(place) = places.get_mut(&wish.place)
                && place.looked.is_some()
                && !lines.any_due(now, |line| wish.accepts.takes(line))
                && let Some(looked) = place.looked.take()
            {
                let _ = looked.send(());
            }
        }
    }

    async fn hear(&self, lines: &mut Lines, queues: &mut Queues) {
        let (waiting, freed) = self.0.bell.take();
        for (line, spot) in waiting {
            lines.note(line, spot);
        }
        let now = clock::now();
        if !freed.is_empty() {
            self.read_queues(queues).await;
        }
        for queue in freed {
            lines.freed(&queue, now);
        }
    }

    async fn read_queues(&self, queues: &mut Queues) {
        match claim::queues(self.0.db.reader()).await {
            Ok(read) => *queues = read,
            // They are read again with the next sweep.
            Err(error) => tracing::debug!(%error, "the settings of queues cannot be read"),
        }
    }

    async fn serve(
        &self,
        lines: &mut Lines,
        takes: &[Take],
        wishes: &[Wish],
        queues: &Queues,
        now: DateTime<Utc>,
    ) {
        let types = self.0.types.current();
        let haul = match claim::claim(&self.0.db, takes, wishes, queues, &types, now).await {
            Ok(haul) => haul,
            Err(error) => {
                tracing::debug!(%error, "jobs cannot be claimed");
                sleep(RETRY).await;
                return;
            }
        };
        let Haul {
            claimed,
            lines: served,
            blocked,
        } = haul;
        self.deliver(claimed);
        if !blocked.is_empty() {
            self.0.bell.want_ends(true);
        }
        for line in &blocked {
            lines.blocked(line, now);
        }
        let mut dry = Vec::new();
        for (line, last, all) in served {
            lines.taken(&line, last, all);
            if all {
                let floor = lines.floor(&line);
                dry.push(Take {
                    line,
                    floor,
                    most: 1,
                });
            }
        }
        match claim::peek(&self.0.db, dry).await {
            Ok(found) => {
                for (line, spot) in found {
                    lines.note(line, spot);
                }
            }
            // The sweep finds it.
            Err(error) => tracing::debug!(%error, "waiting jobs cannot be looked for"),
        }
    }

    fn deliver(&self, claimed: Vec<(u64, Claimed)>) {
        let mut by_place: HashMap<u64, Vec<Claimed>> = HashMap::new();
        for (place, claimed) in claimed {
            by_place.entry(place).or_default().push(claimed);
        }
        let mut back = Vec::new();
        let mut places = self.places();
        for (place, claimed) in by_place {
            let Some(worker) = places.get_mut(&place) else {
                back.extend(claimed);
                continue;
            };
            worker.want = if worker.once {
                0
            } else {
                worker.want - isize::try_from(claimed.len()).unwrap_or_default()
            };
            if let Err(error) = worker.jobs.send(claimed) {
                back.extend(error.0);
            }
        }
        drop(places);
        if !back.is_empty() {
            tokio::spawn(self.clone().give_back(back));
        }
    }

    /// Gives back jobs whose worker was gone before it had them.
    async fn give_back(self, claimed: Vec<Claimed>) {
        for claimed in claimed {
            let report = Report::Release {
                reason: Some("the worker was gone before it had the job".into()),
                snooze: None,
            };
            let (id, lease_id) = (claimed.job.id, claimed.lease_id);
            if let Err(error) = self.0.desk.report(id, lease_id, report).await {
                tracing::debug!(%error, job.id = %id, "a job could not be given back");
            }
        }
    }
}
