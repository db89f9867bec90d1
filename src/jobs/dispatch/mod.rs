//! Dispatcher: claims waiting jobs for all workers of this process, one claim at a time.

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
    claim::{ClaimResult, ClaimedJob, Demand, QueueSettings, WorkerFilter},
    partitions::{Partitions, Selection},
};
use super::{partition::Partition, state::Report, store::writer::JobWriter, types::LiveTypes, wakeups::Wakeups};
use crate::{clock, db::Db, log::retry};

pub(super) mod claim;
pub(super) mod partitions;
pub(super) mod payloads;
pub(super) mod reaper;

/// Maximum number of jobs per claim.
const MAX_JOBS_PER_CLAIM: usize = 500;

/// Interval between two sweeps of the table. A sweep finds jobs whose wakeup was lost with another process.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The interval between sweeps is at least this multiple of the duration of a sweep, to bound the load.
const LOAD_FACTOR: u32 = 20;

/// Delay after a failed claim.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Claims jobs and delivers them to workers. Clones share the state.
#[derive(Debug, Clone)]
pub(super) struct Dispatcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    db: Db,
    types: LiveTypes,
    wakeups: Wakeups,
    writer: JobWriter,
    /// Workers by registration.
    workers: Mutex<HashMap<u64, WaitingWorker>>,
    next_registration: AtomicU64,
    /// True if the next round must sweep the table.
    sweep: AtomicBool,
    shutdown: CancellationToken,
}

/// Registered worker.
#[derive(Debug)]
struct WaitingWorker {
    /// Demand with a capacity of 0; `capacity` below is current.
    demand: Demand,
    /// Number of further jobs that the worker can take. Negative after a reduction of the capacity below the held
    /// jobs.
    capacity: isize,
    /// True if the worker takes the first delivery only.
    once: bool,
    jobs: mpsc::UnboundedSender<Vec<ClaimedJob>>,
    /// Notified if no job is due for the worker.
    no_job: Option<oneshot::Sender<()>>,
}

/// Receiving end of the jobs of a worker. Dropping the inbox releases jobs not yet received.
#[derive(Debug)]
pub(super) struct Inbox {
    registration: u64,
    dispatcher: Dispatcher,
    jobs: mpsc::UnboundedReceiver<Vec<ClaimedJob>>,
}

impl Inbox {
    /// Waits for the next jobs. `None` after [`close`](Self::close).
    pub(super) async fn next(&mut self) -> Option<Vec<ClaimedJob>> {
        self.jobs.recv().await
    }

    /// Changes the number of further jobs that the worker can take.
    pub(super) fn adjust_capacity(&self, change: isize) {
        if let Some(worker) = self.dispatcher.workers().get_mut(&self.registration) {
            worker.capacity += change;
        }
        if change > 0 {
            self.dispatcher.0.wakeups.notify();
        }
    }

    /// Stops deliveries to the worker.
    pub(super) fn close(&mut self) {
        self.dispatcher.workers().remove(&self.registration);
        self.jobs.close();
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.close();
        let mut undelivered = Vec::new();
        while let Ok(claimed) = self.jobs.try_recv() {
            undelivered.extend(claimed);
        }
        if !undelivered.is_empty() {
            tokio::spawn(self.dispatcher.clone().release(undelivered));
        }
    }
}

impl Dispatcher {
    pub(super) fn new(
        db: Db,
        types: LiveTypes,
        wakeups: Wakeups,
        writer: JobWriter,
        shutdown: CancellationToken,
    ) -> Self {
        Self(Arc::new(Shared {
            db,
            types,
            wakeups,
            writer,
            workers: Mutex::default(),
            next_registration: AtomicU64::new(0),
            sweep: AtomicBool::new(false),
            shutdown,
        }))
    }

    /// Registers a worker with a capacity.
    pub(super) fn register(&self, worker_id: String, filter: WorkerFilter, lease: Duration, capacity: usize) -> Inbox {
        self.add_worker(worker_id, filter, lease, capacity, None)
    }

    /// Registers a worker for one delivery. The second value is notified if no job is due for the worker. With
    /// `immediate`, the table is read before that notification.
    pub(super) fn register_once(
        &self,
        worker_id: String,
        filter: WorkerFilter,
        lease: Duration,
        capacity: usize,
        immediate: bool,
    ) -> (Inbox, oneshot::Receiver<()>) {
        let (no_job, no_job_receiver) = oneshot::channel();
        if immediate && self.0.db.backend() == DbBackend::Postgres {
            // Jobs queued by another process a moment ago may not be in the feed yet.
            self.0.sweep.store(true, Ordering::Release);
        }
        let inbox = self.add_worker(worker_id, filter, lease, capacity, Some(no_job));
        (inbox, no_job_receiver)
    }

    fn add_worker(
        &self,
        worker_id: String,
        filter: WorkerFilter,
        lease: Duration,
        capacity: usize,
        no_job: Option<oneshot::Sender<()>>,
    ) -> Inbox {
        let registration = self.0.next_registration.fetch_add(1, Ordering::Relaxed);
        let (sender, jobs) = mpsc::unbounded_channel();
        let demand = Demand { registration, worker_id, lease, filter: Arc::new(filter), capacity: 0 };
        let worker = WaitingWorker {
            demand,
            capacity: capacity.try_into().unwrap_or(isize::MAX),
            once: no_job.is_some(),
            jobs: sender,
            no_job,
        };
        self.workers().insert(registration, worker);
        self.0.wakeups.notify();
        Inbox { registration, dispatcher: self.clone(), jobs }
    }

    fn workers(&self) -> MutexGuard<'_, HashMap<u64, WaitingWorker>> {
        self.0.workers.lock()
    }

    /// Demands of the workers with a free capacity.
    fn demands(&self) -> Vec<Demand> {
        let workers = self.workers();
        let demand = |worker: &WaitingWorker| {
            let capacity = usize::try_from(worker.capacity).unwrap_or_default();
            (capacity > 0).then(|| Demand { capacity, ..worker.demand.clone() })
        };
        workers.values().filter_map(demand).collect()
    }

    /// Claims jobs until shutdown.
    pub(super) async fn run(self) {
        let shutdown = self.0.shutdown.clone();
        shutdown.run_until_cancelled(self.dispatch()).await;
    }

    async fn dispatch(&self) {
        let mut partitions = Partitions::default();
        let mut settings = QueueSettings::default();
        let mut next_sweep = Instant::now();
        loop {
            self.merge_wakeups(&mut partitions, &mut settings).await;
            if self.0.wakeups.take_missed() {
                partitions = Partitions::default();
                next_sweep = Instant::now();
            }
            if self.0.sweep.swap(false, Ordering::Acquire) || Instant::now() >= next_sweep {
                let started = Instant::now();
                match claim::read_heads(&self.0.db).await {
                    Ok(heads) => {
                        self.refresh_settings(&mut settings).await;
                        partitions.merge_heads(heads);
                        self.0.wakeups.set_limits_exhausted(false);
                    }
                    Err(error) => retry::retrying(&error, "failed to read waiting jobs; retrying"),
                }
                let duration = started.elapsed();
                next_sweep = Instant::now() + SWEEP_INTERVAL.max(duration * LOAD_FACTOR);
                continue;
            }
            let demands = self.demands();
            let demand = |partition: &Partition| -> usize {
                let workers = demands.iter();
                let accepting = workers.filter(|demand| demand.filter.accepts(partition));
                accepting.map(|demand| demand.capacity).sum()
            };
            let now = clock::now();
            let capacity = demands.iter().map(|demand| demand.capacity).sum();
            self.notify_workers_without_job(&partitions, &demands, now);
            let selections = partitions.select(now, MAX_JOBS_PER_CLAIM.min(capacity), demand);
            if !selections.is_empty() {
                self.serve(&mut partitions, &selections, &demands, &settings, now).await;
                continue;
            }
            let next_due = partitions.next_due(|partition| demand(partition) > 0);
            let until_due = next_due.map_or(SWEEP_INTERVAL, |due| (due - now).to_std().unwrap_or_default());
            let until_sweep = next_sweep.saturating_duration_since(Instant::now());
            let wait = until_due.min(until_sweep).max(Duration::from_millis(1));
            tokio::select! {
                () = self.0.wakeups.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Notifies workers registered for an immediate answer if no job is due for them.
    fn notify_workers_without_job(&self, partitions: &Partitions, demands: &[Demand], now: DateTime<Utc>) {
        let mut workers = self.workers();
        if self.0.sweep.load(Ordering::Acquire) {
            // A worker registered in the meantime needs a sweep before the answer.
            return;
        }
        for demand in demands {
            if let Some(worker) = workers.get_mut(&demand.registration)
                && worker.no_job.is_some()
                && !partitions.any_due(now, |partition| demand.filter.accepts(partition))
                && let Some(no_job) = worker.no_job.take()
            {
                let _ = no_job.send(());
            }
        }
    }

    async fn merge_wakeups(&self, partitions: &mut Partitions, settings: &mut QueueSettings) {
        let (waiting, freed) = self.0.wakeups.take_pending();
        for (partition, position) in waiting {
            partitions.record_waiting(partition, position);
        }
        let now = clock::now();
        if !freed.is_empty() {
            self.refresh_settings(settings).await;
        }
        for queue in freed {
            partitions.mark_freed(&queue, now);
        }
    }

    async fn refresh_settings(&self, settings: &mut QueueSettings) {
        match claim::read_queue_settings(self.0.db.reader()).await {
            Ok(current) => *settings = current,
            // The next sweep reads the settings again.
            Err(error) => {
                retry::retrying(&error, "failed to read the settings of queues; using the previous settings");
            }
        }
    }

    async fn serve(
        &self,
        partitions: &mut Partitions,
        selections: &[Selection],
        demands: &[Demand],
        settings: &QueueSettings,
        now: DateTime<Utc>,
    ) {
        let types = self.0.types.current();
        let result = claim::claim(&self.0.db, selections, demands, settings, &types, now).await;
        let ClaimResult { claimed, served, blocked } = match result {
            Ok(result) => result,
            Err(error) => {
                retry::retrying(&error, "failed to claim jobs; retrying");
                sleep(RETRY_DELAY).await;
                return;
            }
        };
        self.deliver(claimed);
        if !blocked.is_empty() {
            self.0.wakeups.set_limits_exhausted(true);
        }
        for partition in &blocked {
            partitions.mark_blocked(partition, now);
        }
        let mut emptied = Vec::new();
        for served in served {
            partitions.mark_served(&served.partition, served.last, served.is_empty);
            if served.is_empty {
                let floor = partitions.floor(&served.partition);
                emptied.push(Selection { partition: served.partition, floor, max_jobs: 1 });
            }
        }
        match claim::read_next_positions(&self.0.db, emptied).await {
            Ok(next_positions) => {
                for (partition, position) in next_positions {
                    partitions.record_waiting(partition, position);
                }
            }
            // The next sweep finds the jobs.
            Err(error) => retry::retrying(&error, "failed to read waiting jobs; retrying"),
        }
    }

    fn deliver(&self, claimed: Vec<(u64, ClaimedJob)>) {
        let mut by_registration: HashMap<u64, Vec<ClaimedJob>> = HashMap::new();
        for (registration, job) in claimed {
            by_registration.entry(registration).or_default().push(job);
        }
        let mut undelivered = Vec::new();
        let mut workers = self.workers();
        for (registration, jobs) in by_registration {
            let Some(worker) = workers.get_mut(&registration) else {
                undelivered.extend(jobs);
                continue;
            };
            worker.capacity =
                if worker.once { 0 } else { worker.capacity - isize::try_from(jobs.len()).unwrap_or_default() };
            if let Err(error) = worker.jobs.send(jobs) {
                undelivered.extend(error.0);
            }
        }
        drop(workers);
        if !undelivered.is_empty() {
            tokio::spawn(self.clone().release(undelivered));
        }
    }

    /// Releases jobs whose worker left before the delivery.
    async fn release(self, claimed: Vec<ClaimedJob>) {
        for claimed in claimed {
            let report = Report::Release {
                reason: Some("the worker disconnected before the delivery of the job".into()),
                snooze: None,
            };
            let (id, lease_id) = (claimed.job.id, claimed.lease_id);
            if let Err(error) = self.0.writer.report(id, lease_id, report).await {
                tracing::debug!(%error, job.id = %id, "failed to release an undelivered job; its lease will expire");
            }
        }
    }
}
