//! Deliverer: delivers due messages, each channel at its own pace. A hanging receiver delays no other channel.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};
use sea_orm::{ColumnTrait, EntityTrait, Iterable, QueryFilter};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    attempt::{PreparedChannel, Senders},
    backoff::Backoff,
    counts::Counts,
    message::Message,
    outbox::{self, FinishedAttempt},
    outcome::{AttemptResult, Outcome},
};
use crate::{
    alerts::{engine::schedule::Schedule, lifecycle::deliveries::DeliveryWakeup},
    db::Db,
    entity::{self, Severity, alert, delivery, event, notification_channel},
    error::{Error, Result},
    log::retry,
};

/// Interval between two queries for due channels without a notification.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum number of concurrent attempts per channel.
const MAX_CONCURRENT_ATTEMPTS: usize = 64;

/// Maximum number of outcomes stored by one transaction.
const MAX_OUTCOMES_PER_WRITE: usize = 256;

/// Margin of a lease over the timeout of an attempt, for storing the outcome.
const LEASE_MARGIN: Duration = Duration::from_secs(15);

/// Delay after a failure of the database.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Delivers messages. Clones share the state.
#[derive(Debug, Clone)]
pub struct Deliverer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    db: Db,
    senders: Senders,
    backoff: Backoff,
    counts: Counts,
    /// Lease of all attempts of this process.
    lease_id: Uuid,
    wakeup: DeliveryWakeup,
    /// Signals of the running workers by channel.
    workers: Mutex<HashMap<Uuid, Arc<WorkerSignal>>>,
    /// Channels already logged as unusable.
    unusable: Mutex<HashSet<Uuid>>,
}

/// Signal to the worker of a channel: more deliveries are due.
#[derive(Debug, Default)]
struct WorkerSignal {
    is_set: AtomicBool,
    notify: Notify,
}

impl Deliverer {
    /// Creates a deliverer, idle until [`run`](Self::run).
    pub fn new(db: Db, senders: Senders, backoff: Backoff, wakeup: DeliveryWakeup) -> Self {
        Self(Arc::new(Inner {
            db,
            senders,
            backoff,
            counts: Counts::default(),
            lease_id: Uuid::now_v7(),
            wakeup,
            workers: Mutex::default(),
            unusable: Mutex::default(),
        }))
    }

    /// Wakeup for newly due deliveries.
    pub fn wakeup(&self) -> &DeliveryWakeup {
        &self.0.wakeup
    }

    /// Senders of the deliverer.
    pub fn senders(&self) -> &Senders {
        &self.0.senders
    }

    /// Metrics of deliveries since the start.
    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// Delivers until shutdown. Attempts in progress then get the grace period; other leases are released.
    pub async fn run(self, grace: Duration, shutdown: CancellationToken) {
        let inner = self.0;
        inner.release_stale_leases(&shutdown).await;
        let (outcomes, outcome_receiver) = mpsc::channel(MAX_OUTCOMES_PER_WRITE);
        let storing = tokio::spawn(inner.clone().store_outcomes(outcome_receiver));
        let mut workers = JoinSet::new();
        while !shutdown.is_cancelled() {
            let due = outbox::due_channels(&inner.db, entity::now()).await;
            let due = due.unwrap_or_else(|error| {
                retry::retrying(&error, "failed to read the outbox; retrying");
                Vec::new()
            });
            for channel_id in due {
                if let Some(signal) = inner.start_worker(channel_id) {
                    workers.spawn(inner.clone().deliver_channel(
                        channel_id,
                        signal,
                        outcomes.clone(),
                        shutdown.clone(),
                    ));
                }
            }
            while workers.try_join_next().is_some() {}
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = inner.wakeup.notified() => {}
                () = sleep(POLL_INTERVAL) => {}
            }
        }
        let ending = async { while workers.join_next().await.is_some() {} };
        if timeout(grace, ending).await.is_err() {
            workers.shutdown().await;
        }
        drop(outcomes);
        let _ = timeout(grace, storing).await;
        if let Err(error) = outbox::release_leases(&inner.db, Some(inner.lease_id)).await {
            tracing::debug!(%error, "failed to release leases of the outbox; they will expire");
        }
    }
}

impl Inner {
    /// Releases the leases of an earlier process on SQLite, where no other process can be running.
    async fn release_stale_leases(&self, shutdown: &CancellationToken) {
        if self.db.backend() != sea_orm::DbBackend::Sqlite {
            return;
        }
        let releasing = async {
            while let Err(error) = outbox::release_leases(&self.db, None).await {
                retry::retrying(&error, "failed to release leases of the outbox; retrying");
                sleep(RETRY_DELAY).await;
            }
        };
        shutdown.run_until_cancelled(releasing).await;
    }

    fn workers(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<WorkerSignal>>> {
        self.workers.lock()
    }

    /// Registers a worker for a channel. If a worker is running, the worker is signalled instead, and `None` is
    /// returned.
    fn start_worker(&self, channel_id: Uuid) -> Option<Arc<WorkerSignal>> {
        let mut workers = self.workers();
        if let Some(signal) = workers.get(&channel_id) {
            signal.is_set.store(true, Ordering::Release);
            signal.notify.notify_one();
            return None;
        }
        let signal = Arc::new(WorkerSignal::default());
        workers.insert(channel_id, signal.clone());
        Some(signal)
    }

    /// Delivers the messages of a channel until none is due, or until the receiver wants no more.
    async fn deliver_channel(
        self: Arc<Self>,
        channel_id: Uuid,
        signal: Arc<WorkerSignal>,
        outcomes: mpsc::Sender<FinishedAttempt>,
        shutdown: CancellationToken,
    ) {
        let mut attempts = JoinSet::new();
        let mut may_claim = true;
        loop {
            let free = MAX_CONCURRENT_ATTEMPTS - attempts.len();
            // A few large claims are cheaper than many small ones.
            if shutdown.is_cancelled() {
                may_claim = false;
            }
            if may_claim && free >= MAX_CONCURRENT_ATTEMPTS / 2 {
                may_claim = match self.claim_batch(channel_id, free).await {
                    Ok(claimed) => {
                        let has_messages = !claimed.messages.is_empty();
                        let channel = Arc::new(claimed.channel);
                        for (delivery, message) in claimed.messages {
                            let (inner, outcomes) = (self.clone(), outcomes.clone());
                            let attempt = inner.attempt(channel.clone(), delivery, message, outcomes);
                            attempts.spawn(attempt);
                        }
                        has_messages
                    }
                    Err(error) => {
                        retry::retrying(&error, "failed to claim deliveries; retrying");
                        sleep(RETRY_DELAY).await;
                        false
                    }
                };
                continue;
            }
            tokio::select! {
                ended = attempts.join_next() => match ended {
                    // The receiver is overloaded or gone.
                    Some(Ok(false)) => may_claim = false,
                    Some(_) => {}
                    // The lock prevents a signal between this check and the end of the worker.
                    None => {
                        let mut workers = self.workers();
                        if !signal.is_set.swap(false, Ordering::AcqRel) {
                            workers.remove(&channel_id);
                            return;
                        }
                        may_claim = true;
                    }
                },
                () = signal.notify.notified() => {}
            }
            if signal.is_set.swap(false, Ordering::AcqRel) {
                may_claim = true;
            }
        }
    }

    /// Claims due deliveries of a channel and builds their messages.
    async fn claim_batch(&self, channel_id: Uuid, limit: usize) -> Result<ClaimedBatch> {
        let nothing = ClaimedBatch::default();
        let Some(channel) = outbox::read_channel(&self.db, channel_id).await? else {
            return Ok(nothing);
        };
        let now = entity::now();
        let throttled = channel.throttled_until.is_some_and(|until| until > now);
        if !channel.enabled || throttled {
            return Ok(nothing);
        }
        let severities = allowed_severities(&channel, now);
        if severities.as_ref().is_some_and(Vec::is_empty) {
            return Ok(nothing);
        }
        let prepared = match self.prepare_channel(&channel) {
            Ok(prepared) => prepared,
            Err(problem) => {
                outbox::record_wait_reason(&self.db, channel_id, &problem).await?;
                return Ok(nothing);
            }
        };
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        let lease = (self.lease_id, prepared.timeout() + LEASE_MARGIN);
        let claimed = outbox::claim(&self.db, channel_id, severities.as_deref(), limit, lease).await?;
        let messages = self.build_messages(claimed).await?;
        Ok(ClaimedBatch { channel: Some(prepared), messages })
    }

    /// Prepares a channel. The error is logged once per channel. Another process may have the key; until then,
    /// deliveries wait and none is lost.
    fn prepare_channel(&self, channel: &notification_channel::Model) -> Result<PreparedChannel, String> {
        let prepared = self.senders.prepare_channel(channel);
        let mut unusable = self.unusable.lock();
        match &prepared {
            Ok(_) => {
                unusable.remove(&channel.id);
            }
            Err(problem) if unusable.insert(channel.id) => {
                tracing::warn!(channel = %channel.name, problem, "failed to prepare a notification channel; its deliveries wait");
            }
            Err(_) => {}
        }
        prepared
    }

    /// Builds the messages of claimed deliveries.
    async fn build_messages(&self, deliveries: Vec<delivery::Model>) -> Result<Vec<(delivery::Model, Message)>> {
        if deliveries.is_empty() {
            return Ok(Vec::new());
        }
        let ids = deliveries.iter().map(|delivery| delivery.alert_id);
        let alerts = alert::Entity::find().filter(alert::Column::Id.is_in(ids)).all(self.db.reader()).await?;
        let ids = alerts.iter().map(|alert| alert.event_id);
        let events = event::Entity::find().filter(event::Column::Id.is_in(ids)).all(self.db.reader()).await?;
        let alerts: HashMap<_, _> = alerts.into_iter().map(|alert| (alert.id, alert)).collect();
        let events: HashMap<_, _> = events.into_iter().map(|event| (event.id, event)).collect();
        let message = |delivery: delivery::Model| {
            // A deleted alert has deleted its deliveries.
            let alert = alerts.get(&delivery.alert_id)?;
            let message = Message::for_alert(&delivery, alert, events.get(&alert.event_id)?);
            Some((delivery, message))
        };
        Ok(deliveries.into_iter().filter_map(message).collect())
    }

    /// Makes one attempt. Returns false if the channel must pause.
    async fn attempt(
        self: Arc<Self>,
        channel: Arc<Option<PreparedChannel>>,
        delivery: delivery::Model,
        message: Message,
        outcomes: mpsc::Sender<FinishedAttempt>,
    ) -> bool {
        let outcome = match channel.as_ref() {
            Some(channel) => self.senders.send(channel, &message).await,
            None => Outcome::failed("the channel was deleted"),
        };
        self.counts.count(&outcome);
        let may_continue = !matches!(outcome.result, AttemptResult::Throttled(..) | AttemptResult::Gone(_));
        // The receiver of the outcomes outlives all workers.
        let _ = outcomes.send(FinishedAttempt { delivery, outcome }).await;
        may_continue
    }

    /// Stores outcomes in batches, until the last sender is dropped.
    async fn store_outcomes(self: Arc<Self>, mut receiver: mpsc::Receiver<FinishedAttempt>) {
        let mut batch = Vec::with_capacity(MAX_OUTCOMES_PER_WRITE);
        while receiver.recv_many(&mut batch, MAX_OUTCOMES_PER_WRITE).await > 0 {
            if self.store_batch(&batch).await.is_err() {
                // One outcome that cannot be stored must not block the others.
                for attempt in &batch {
                    if let Err(error) = self.store_batch(std::slice::from_ref(attempt)).await {
                        let id = attempt.delivery.id;
                        tracing::error!(delivery.id = %id, %error, "failed to store the outcome of a delivery");
                    }
                }
            }
            batch.clear();
        }
    }

    async fn store_batch(self: &Arc<Self>, batch: &[FinishedAttempt]) -> Result<()> {
        let soonest = loop {
            match outbox::store_attempts(&self.db, batch, self.backoff).await {
                Ok(soonest) => break soonest,
                Err(error) if error.is_unavailable() || matches!(error, Error::Contended) => {
                    sleep(RETRY_DELAY).await;
                }
                Err(error) => return Err(error),
            }
        };
        if let Some(soonest) = soonest.filter(|soonest| *soonest < POLL_INTERVAL) {
            let inner = self.clone();
            tokio::spawn(async move {
                sleep(soonest).await;
                inner.wakeup.notify();
            });
        }
        Ok(())
    }
}

/// Claimed deliveries of a channel with their messages.
#[derive(Default)]
struct ClaimedBatch {
    channel: Option<PreparedChannel>,
    messages: Vec<(delivery::Model, Message)>,
}

/// Severities allowed now. `None` outside of quiet times, when all are allowed.
fn allowed_severities(channel: &notification_channel::Model, now: DateTime<Utc>) -> Option<Vec<Severity>> {
    let schedules = channel.quiet_times.as_ref()?;
    // An invalid schedule was written without validation, and must not hold back deliveries.
    let mut schedules = schedules.0.iter().filter_map(|schedule| Schedule::compile(schedule).ok());
    if !schedules.any(|schedule| schedule.contains(now)) {
        return None;
    }
    // In the order from low to critical.
    let from = |lowest| Severity::iter().skip_while(move |severity| *severity != lowest);
    Some(channel.quiet_except.map(from).into_iter().flatten().collect())
}
