//! Stores the events and announces them, and keeps in `gpus` how each GPU is.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveModelTrait, ActiveValue::NotSet, ColumnTrait, DatabaseTransaction, EntityTrait,
    QueryFilter, Set, sea_query::Expr,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::claims::SILENT_AFTER;
use crate::{
    db::Db,
    entity::{self, gpu, gpu_event},
    error::{Chain, Result},
    feed,
    gpu::{
        FLUSH_WITHIN,
        events::{Counts, Queue, announcement},
        health::condition::{Conditions, Stored},
        live::Condition,
    },
    pb::GpuState,
    rpc::enums::proto_enum,
};

/// How many events one transaction stores.
const BATCH: usize = 100;

/// How often to look what was counted, and how the GPUs are.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often to tell that a GPU is as it was.
const REPORT_EVERY: TimeDelta = TimeDelta::minutes(1);

/// The longest pause between two attempts while the database is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What was told of how each GPU is, and when.
#[derive(Debug, Default)]
pub(in crate::gpu) struct Reported(HashMap<String, (Condition, DateTime<Utc>)>);

/// Stores events and conditions.
pub(in crate::gpu) struct Store {
    pub db: Db,
    pub host: String,
    pub queue: Arc<Queue>,
    pub conditions: Arc<Conditions>,
    /// Counts what is stored.
    pub counts: Counts,
}

/// How the GPUs of this host were when it was last told.
pub(in crate::gpu) async fn stored(db: &Db, host: &str) -> Result<HashMap<String, Stored>> {
    let gpus = gpu::Entity::find()
        .filter(gpu::Column::Host.eq(host))
        .all(db.reader())
        .await?;
    let stored = gpus.into_iter().map(|gpu| {
        let stored = Stored {
            state: gpu.state.map(Into::into),
            memory_pressure: gpu.memory_pressure.map(Into::into),
            driver_version: gpu.driver_version,
        };
        (gpu.uuid, stored)
    });
    Ok(stored.collect())
}

impl Reported {
    /// Those GPUs that are not as they were told to be, and now and then the others.
    pub(in crate::gpu) fn news(
        &self,
        mut told: Vec<(String, Condition)>,
        now: DateTime<Utc>,
    ) -> Vec<(String, Condition)> {
        told.retain(|(uuid, condition)| {
            let before = self.0.get(uuid);
            before.is_none_or(|(before, at)| before != condition || now - *at >= REPORT_EVERY)
        });
        told
    }

    /// These were told.
    pub(in crate::gpu) fn remember(
        &mut self,
        told: impl IntoIterator<Item = (String, Condition)>,
        now: DateTime<Utc>,
    ) {
        let told = told.into_iter();
        self.0
            .extend(told.map(|(uuid, condition)| (uuid, (condition, now))));
    }
}

impl Store {
    /// Stores what comes, until shutdown, and then the rest.
    pub(in crate::gpu) async fn run(self, shutdown: CancellationToken) {
        let mut reported = Reported::default();
        let mut away: Option<Duration> = None;
        loop {
            let pause = away.unwrap_or(LOOK_EVERY);
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = sleep(pause) => {}
                () = self.queue.filled(), if away.is_none() => {}
            }
            self.queue.settle(Some(Instant::now().into_std()));
            match self.store_all(&mut reported, away.is_some()).await {
                Ok(()) => {
                    if away.take().is_some() {
                        tracing::info!("GPU events are stored again");
                    }
                }
                Err(error) => {
                    if away.is_none() {
                        let error = Chain(&error).to_string();
                        tracing::warn!(error, "GPU events cannot be stored; they wait in memory");
                    }
                    away = Some((pause * 2).min(LONGEST_PAUSE));
                }
            }
        }
        self.queue.settle(None);
        let rest = self.store_all(&mut reported, away.is_some());
        let stored = timeout(FLUSH_WITHIN, rest).await;
        if !matches!(stored, Ok(Ok(()))) {
            let lost = self.queue.unstored();
            tracing::warn!(lost, "the last GPU events could not be stored");
        }
    }

    /// Stores what waits, and how the GPUs are. After a failure nobody knows whether what was stored
    /// then is there: a commit may be made whose answer is lost.
    async fn store_all(&self, reported: &mut Reported, mut after_failure: bool) -> Result<()> {
        loop {
            let events = self.queue.first(BATCH);
            if events.is_empty() {
                break;
            }
            let mut after = HashMap::new();
            for event in &events {
                let after_it = event.after.iter().cloned();
                after.extend(after_it.filter(|(uuid, _)| self.conditions.may_tell(uuid)));
            }
            let after: Vec<_> = after.into_iter().collect();
            let facts = events.iter().map(|event| event.fact(&self.host));
            let mut facts: Vec<_> = facts.collect();
            if std::mem::take(&mut after_failure) {
                self.leave_out_stored(&mut facts).await?;
            }
            let stored = facts.clone();
            self.db
                .write(async |tx| insert(tx, facts, &after).await)
                .await?;
            self.counts.add(&stored);
            self.queue.remove(events.len());
        }
        self.report_all(reported).await
    }

    async fn leave_out_stored(&self, facts: &mut Vec<gpu_event::Model>) -> Result<()> {
        let times = facts.iter().map(|fact| fact.occurred_at);
        let (Some(first), Some(last)) = (times.clone().min(), times.max()) else {
            return Ok(());
        };
        let mut stored = gpu_event::Entity::find()
            .filter(gpu_event::Column::Host.eq(&self.host))
            .filter(gpu_event::Column::OccurredAt.between(first, last))
            .all(self.db.reader())
            .await?;
        facts.retain(|fact| {
            // More may have become known of it since.
            let is_same = |stored: &gpu_event::Model| {
                *fact
                    == gpu_event::Model {
                        id: fact.id,
                        detail: fact.detail.clone(),
                        ..stored.clone()
                    }
            };
            // One by one, for there may be two that are the same.
            let same = stored.iter().position(is_same);
            same.map(|at| stored.swap_remove(at)).is_none()
        });
        Ok(())
    }

    /// Tells how those GPUs are that are not as they were, and now and then the others.
    async fn report_all(&self, reported: &mut Reported) -> Result<()> {
        let now = entity::now();
        let told = reported.news(self.conditions.told(), now);
        if told.is_empty() {
            return Ok(());
        }
        let there = self
            .db
            .write(async |tx| report(tx, &told, now).await)
            .await?;
        // The others have no row yet: it comes with their first sample.
        let there = told.into_iter().zip(there).filter(|(_, there)| *there);
        reported.remember(there.map(|(told, _)| told), now);
        Ok(())
    }
}

/// Inserts events that have no id yet, announces them, and writes down how GPUs are since then.
pub(in crate::gpu) async fn insert(
    tx: &DatabaseTransaction,
    events: Vec<gpu_event::Model>,
    after: &[(String, Condition)],
) -> Result<()> {
    let mut changes = Vec::with_capacity(events.len());
    for event in events {
        let mut row = gpu_event::ActiveModel::from(event).reset_all();
        row.id = NotSet;
        changes.push(announcement(row.insert(tx).await?.into()));
    }
    report(tx, after, entity::now()).await?;
    feed::record(tx, changes).await
}

/// Writes down how GPUs are. Returns for each whether it has a row.
async fn report(
    tx: &DatabaseTransaction,
    conditions: &[(String, Condition)],
    now: DateTime<Utc>,
) -> Result<Vec<bool>> {
    let mut conditions: Vec<_> = conditions.iter().enumerate().collect();
    // By UUID, so that two processes lock the rows in the same order.
    conditions.sort_by(|(_, (a, _)), (_, (b, _))| a.cmp(b));
    let mut there = vec![false; conditions.len()];
    for (at, (uuid, condition)) in conditions {
        let updated = gpu::Entity::update_many()
            .set(gpu::ActiveModel::from(*condition))
            .col_expr(gpu::Column::ReportedAt, Expr::value(now))
            .filter(gpu::Column::Uuid.eq(uuid))
            .exec(tx)
            .await?;
        there[at] = updated.rows_affected > 0;
    }
    Ok(there)
}

impl From<Condition> for gpu::ActiveModel {
    fn from(condition: Condition) -> Self {
        Self {
            state: Set(state(condition.state)),
            memory_pressure: Set(condition.memory_pressure.and_then(pressure)),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}

fn state(state: GpuState) -> Option<gpu::GpuState> {
    match state {
        GpuState::Unspecified => None,
        GpuState::Ok => Some(gpu::GpuState::Ok),
        GpuState::Unresponsive => Some(gpu::GpuState::Unresponsive),
        GpuState::Lost => Some(gpu::GpuState::Lost),
        GpuState::Asleep => Some(gpu::GpuState::Asleep),
        GpuState::Unknown => Some(gpu::GpuState::Unknown),
    }
}

fn pressure(pressure: crate::pb::MemoryPressure) -> Option<gpu::MemoryPressure> {
    use crate::pb::MemoryPressure;
    match pressure {
        MemoryPressure::Unspecified => None,
        MemoryPressure::Normal => Some(gpu::MemoryPressure::Normal),
        MemoryPressure::Warning => Some(gpu::MemoryPressure::Warning),
        MemoryPressure::Critical => Some(gpu::MemoryPressure::Critical),
    }
}

impl gpu::Model {
    /// How the GPU is, as far as its host reports it.
    pub(in crate::gpu) fn condition(&self, now: DateTime<Utc>) -> Condition {
        let reports = self
            .reported_at
            .is_some_and(|reported_at| now - reported_at < SILENT_AFTER);
        let state = self.state.filter(|_| reports);
        Condition {
            state: state.map_or(GpuState::Unknown, Into::into),
            memory_pressure: self.memory_pressure.filter(|_| reports).map(Into::into),
        }
    }
}

proto_enum!(
    gpu::GpuState,
    GpuState {
        Ok,
        Unresponsive,
        Lost,
        Asleep,
        Unknown
    }
);
proto_enum!(
    gpu::MemoryPressure,
    crate::pb::MemoryPressure {
        Normal,
        Warning,
        Critical
    }
);
