//! Makes the deliveries that are due, each channel at its own pace: one that hangs holds up no other.

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
    attempt::{Attempted, Outcome, Ready, Senders},
    backoff::Backoff,
    counts::Counts,
    message::Message,
    outbox::{self, Done},
};
use crate::{
    alerts::{engine::schedule::Schedule, lifecycle::deliveries::DeliveryWakeup},
    db::Db,
    entity::{self, Severity, alert, delivery, event, notification_channel},
    error::{Error, Result},
};

/// How often to look for what is due, if nothing says that there is something.
const LOOK: Duration = Duration::from_secs(1);

/// How many deliveries of a channel are under way at a time.
const AT_ONCE: usize = 64;

/// How many attempts are written down together.
const BATCH: usize = 256;

/// How long a lease lasts beyond the timeout of an attempt: time to write down what came of it.
const LEASE: Duration = Duration::from_secs(15);

/// How long to wait after a failure of the database.
const RETRY: Duration = Duration::from_millis(250);

/// Makes deliveries. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Deliverer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    db: Db,
    senders: Senders,
    backoff: Backoff,
    counts: Counts,
    /// What this process begins is under this lease.
    lease_id: Uuid,
    wakeup: DeliveryWakeup,
    /// The channels that are being worked on.
    lanes: Mutex<HashMap<Uuid, Arc<More>>>,
    /// The channels of which it was logged that they cannot be used.
    unusable: Mutex<HashSet<Uuid>>,
}

/// How a lane is told that there is more.
#[derive(Debug, Default)]
struct More {
    is_there: AtomicBool,
    told: Notify,
}

impl Deliverer {
    /// One that does nothing until it runs.
    pub fn new(db: Db, senders: Senders, backoff: Backoff, wakeup: DeliveryWakeup) -> Self {
        Self(Arc::new(Inner {
            db,
            senders,
            backoff,
            counts: Counts::default(),
            lease_id: Uuid::now_v7(),
            wakeup,
            lanes: Mutex::default(),
            unusable: Mutex::default(),
        }))
    }

    /// Has it look at once.
    pub fn wakeup(&self) -> &DeliveryWakeup {
        &self.0.wakeup
    }

    /// What sends.
    pub fn senders(&self) -> &Senders {
        &self.0.senders
    }

    /// What was delivered since the start.
    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// Delivers until shutdown; then what is under way gets the grace time, and the rest is given back.
    pub async fn run(self, grace: Duration, shutdown: CancellationToken) {
        let work = self.0;
        work.begin(&shutdown).await;
        let (results, finished) = mpsc::channel(BATCH);
        let writing = tokio::spawn(work.clone().finish(finished));
        let mut lanes = JoinSet::new();
        while !shutdown.is_cancelled() {
            let due = outbox::due_channels(&work.db, entity::now()).await;
            let due = due.unwrap_or_else(|error| {
                tracing::debug!(%error, "the ledger cannot be read; it is tried again");
                Vec::new()
            });
            for channel_id in due {
                if let Some(more) = work.enter(channel_id) {
                    let lane =
                        work.clone()
                            .lane(channel_id, more, results.clone(), shutdown.clone());
                    lanes.spawn(lane);
                }
            }
            while lanes.try_join_next().is_some() {}
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = work.wakeup.notified() => {}
                () = sleep(LOOK) => {}
            }
        }
        let ending = async { while lanes.join_next().await.is_some() {} };
        if timeout(grace, ending).await.is_err() {
            lanes.shutdown().await;
        }
        drop(results);
        let _ = timeout(grace, writing).await;
        if let Err(error) = outbox::give_back(&work.db, Some(work.lease_id)).await {
            tracing::debug!(%error, "deliveries are under a lease for a moment longer");
        }
    }
}

impl Inner {
    /// On SQLite there is no other process: what is under a lease was begun by one that is gone.
    async fn begin(&self, shutdown: &CancellationToken) {
        if self.db.backend() != sea_orm::DbBackend::Sqlite {
            return;
        }
        let giving = async {
            while let Err(error) = outbox::give_back(&self.db, None).await {
                tracing::debug!(%error, "the ledger cannot be written; it is tried again");
                sleep(RETRY).await;
            }
        };
        shutdown.run_until_cancelled(giving).await;
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<More>>> {
        self.lanes.lock()
    }

    /// Opens the lane of a channel; if it is open, tells it that there is more.
    fn enter(&self, channel_id: Uuid) -> Option<Arc<More>> {
        let mut lanes = self.lanes();
        if let Some(more) = lanes.get(&channel_id) {
            more.is_there.store(true, Ordering::Release);
            more.told.notify_one();
            return None;
        }
        let more = Arc::new(More::default());
        lanes.insert(channel_id, more.clone());
        Some(more)
    }

    /// Delivers by one channel until nothing is due, or it may not deliver now.
    async fn lane(
        self: Arc<Self>,
        channel_id: Uuid,
        more: Arc<More>,
        results: mpsc::Sender<Done>,
        shutdown: CancellationToken,
    ) {
        let mut sending = JoinSet::new();
        let mut going = true;
        loop {
            let room = AT_ONCE - sending.len();
            // Few large claims are cheaper than many small ones.
            if shutdown.is_cancelled() {
                going = false;
            }
            if going && room >= AT_ONCE / 2 {
                going = match self.claim(channel_id, room).await {
                    Ok(claimed) => {
                        let any = !claimed.messages.is_empty();
                        let channel = Arc::new(claimed.channel);
                        for (delivery, message) in claimed.messages {
                            let (work, results) = (self.clone(), results.clone());
                            sending.spawn(work.send(channel.clone(), delivery, message, results));
                        }
                        any
                    }
                    Err(error) => {
                        tracing::debug!(%error, "deliveries cannot be begun; it is tried again");
                        sleep(RETRY).await;
                        false
                    }
                };
                continue;
            }
            tokio::select! {
                ended = sending.join_next() => match ended {
                    // The receiver wants less, or nothing.
                    Some(Ok(false)) => going = false,
                    Some(_) => {}
                    // Nobody is told anything between the question and the end of the lane.
                    None => {
                        let mut lanes = self.lanes();
                        if !more.is_there.swap(false, Ordering::AcqRel) {
                            lanes.remove(&channel_id);
                            return;
                        }
                        going = true;
                    }
                },
                () = more.told.notified() => {}
            }
            if more.is_there.swap(false, Ordering::AcqRel) {
                going = true;
            }
        }
    }

    /// Begins what is due of a channel, and reads what is to be told.
    async fn claim(&self, channel_id: Uuid, most: usize) -> Result<Claimed> {
        let nothing = Claimed::default();
        let Some(channel) = outbox::channel(&self.db, channel_id).await? else {
            return Ok(nothing);
        };
        let now = entity::now();
        let throttled = channel.throttled_until.is_some_and(|until| until > now);
        if !channel.enabled || throttled {
            return Ok(nothing);
        }
        let severities = in_quiet_times(&channel, now);
        if severities.as_ref().is_some_and(Vec::is_empty) {
            return Ok(nothing);
        }
        let ready = match self.ready(&channel) {
            Ok(ready) => ready,
            Err(problem) => {
                outbox::explain_wait(&self.db, channel_id, &problem).await?;
                return Ok(nothing);
            }
        };
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        let lease = (self.lease_id, ready.timeout() + LEASE);
        let begun = outbox::claim(&self.db, channel_id, severities.as_deref(), most, lease).await?;
        let messages = self.messages(begun).await?;
        Ok(Claimed {
            channel: Some(ready),
            messages,
        })
    }

    /// The channel, or why it cannot be used. Another process may have the key of its secrets; if none has, nothing is lost by
    /// waiting.
    fn ready(&self, channel: &notification_channel::Model) -> Result<Ready, String> {
        let ready = self.senders.ready(channel);
        let mut unusable = self.unusable.lock();
        match &ready {
            Ok(_) => {
                unusable.remove(&channel.id);
            }
            // It is asked again and again.
            Err(problem) if unusable.insert(channel.id) => {
                tracing::warn!(channel = %channel.name, problem, "a notification channel cannot be used");
            }
            Err(_) => {}
        }
        ready
    }

    /// What is to be told by deliveries that were begun.
    async fn messages(
        &self,
        deliveries: Vec<delivery::Model>,
    ) -> Result<Vec<(delivery::Model, Message)>> {
        if deliveries.is_empty() {
            return Ok(Vec::new());
        }
        let ids = deliveries.iter().map(|delivery| delivery.alert_id);
        let alerts = alert::Entity::find()
            .filter(alert::Column::Id.is_in(ids))
            .all(self.db.reader())
            .await?;
        let ids = alerts.iter().map(|alert| alert.event_id);
        let events = event::Entity::find()
            .filter(event::Column::Id.is_in(ids))
            .all(self.db.reader())
            .await?;
        let alerts: HashMap<_, _> = alerts.into_iter().map(|alert| (alert.id, alert)).collect();
        let events: HashMap<_, _> = events.into_iter().map(|event| (event.id, event)).collect();
        let message = |delivery: delivery::Model| {
            // Deleted a moment ago, and the delivery with it.
            let alert = alerts.get(&delivery.alert_id)?;
            let message = Message::of(&delivery, alert, events.get(&alert.event_id)?);
            Some((delivery, message))
        };
        Ok(deliveries.into_iter().filter_map(message).collect())
    }

    /// Makes one attempt. Returns whether the channel may go on.
    async fn send(
        self: Arc<Self>,
        channel: Arc<Option<Ready>>,
        delivery: delivery::Model,
        message: Message,
        results: mpsc::Sender<Done>,
    ) -> bool {
        let outcome = match channel.as_ref() {
            Some(channel) => self.senders.send(channel, &message).await,
            None => Outcome::failed("the channel is gone"),
        };
        self.counts.count(&outcome);
        let goes_on = !matches!(
            outcome.result,
            Attempted::Throttled(..) | Attempted::Gone(_)
        );
        // The finisher ends after all lanes.
        let _ = results.send(Done { delivery, outcome }).await;
        goes_on
    }

    /// Writes down what came of attempts, many together.
    async fn finish(self: Arc<Self>, mut finished: mpsc::Receiver<Done>) {
        let mut done = Vec::with_capacity(BATCH);
        while finished.recv_many(&mut done, BATCH).await > 0 {
            if self.write_down(&done).await.is_err() {
                // So that one that cannot be written down, because of what nobody has thought of, holds up no other.
                for one in &done {
                    if let Err(error) = self.write_down(std::slice::from_ref(one)).await {
                        let id = one.delivery.id;
                        tracing::error!(delivery.id = %id, %error, "a delivery cannot be written down");
                    }
                }
            }
            done.clear();
        }
    }

    async fn write_down(self: &Arc<Self>, done: &[Done]) -> Result<()> {
        let soonest = loop {
            match outbox::finish(&self.db, done, self.backoff).await {
                Ok(soonest) => break soonest,
                Err(error) if error.is_unavailable() || matches!(error, Error::Contended) => {
                    sleep(RETRY).await;
                }
                Err(error) => return Err(error),
            }
        };
        if let Some(soonest) = soonest.filter(|soonest| *soonest < LOOK) {
            let work = self.clone();
            tokio::spawn(async move {
                sleep(soonest).await;
                work.wakeup.notify();
            });
        }
        Ok(())
    }
}

#[derive(Default)]
struct Claimed {
    channel: Option<Ready>,
    messages: Vec<(delivery::Model, Message)>,
}

/// The severities that may be delivered now. `None`: all, for these are not quiet times.
fn in_quiet_times(
    channel: &notification_channel::Model,
    now: DateTime<Utc>,
) -> Option<Vec<Severity>> {
    let schedules = channel.quiet_times.as_ref()?;
    // One that cannot be used was written past our checks, and must not hold anything back.
    let mut schedules = schedules
        .0
        .iter()
        .filter_map(|one| Schedule::compile(one).ok());
    if !schedules.any(|schedule| schedule.contains(now)) {
        return None;
    }
    // From the lowest to the highest.
    let from = |least| Severity::iter().skip_while(move |one| *one != least);
    Some(
        channel
            .quiet_except
            .map(from)
            .into_iter()
            .flatten()
            .collect(),
    )
}
