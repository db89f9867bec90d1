//! Stores and announces events, and keeps the conditions in `gpus` current.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveModelTrait, ActiveValue::NotSet, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, Set,
    sea_query::Expr,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::claims::SILENCE_TIMEOUT;
use crate::{
    db::Db,
    entity::{self, gpu, gpu_event},
    error::{Chain, Result},
    feed,
    gpu::{
        condition::Condition,
        events::{EventCounts, EventQueue, to_record},
        health::tracker::{ConditionTracker, StoredCondition},
        settings::FLUSH_TIMEOUT,
    },
    pb::GpuState,
    rpc::enums::proto_enum,
};

/// Upper bound of events that one transaction stores.
const MAX_EVENTS_PER_TRANSACTION: usize = 100;

/// Time between two checks for due event summaries and changed conditions.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Time after which an unchanged condition is reported again.
const REPORT_INTERVAL: TimeDelta = TimeDelta::minutes(1);

/// Longest pause between two attempts while the database is away.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Last reported condition of each GPU, with the time of the report.
#[derive(Debug, Default)]
pub(in crate::gpu) struct ReportedConditions(HashMap<String, (Condition, DateTime<Utc>)>);

/// Task that stores events and conditions.
pub(in crate::gpu) struct EventStore {
    pub db: Db,
    pub host: String,
    pub queue: Arc<EventQueue>,
    pub conditions: Arc<ConditionTracker>,
    /// Counts of the stored events.
    pub counts: EventCounts,
}

/// Last stored condition of each GPU of this host, by UUID.
pub(in crate::gpu) async fn load_conditions(db: &Db, host: &str) -> Result<HashMap<String, StoredCondition>> {
    let gpus = gpu::Entity::find().filter(gpu::Column::Host.eq(host)).all(db.reader()).await?;
    let stored = gpus.into_iter().map(|gpu| {
        let stored = StoredCondition {
            state: gpu.state.map(Into::into),
            memory_pressure: gpu.memory_pressure.map(Into::into),
            driver_version: gpu.driver_version,
        };
        (gpu.uuid, stored)
    });
    Ok(stored.collect())
}

impl ReportedConditions {
    /// Conditions that differ from the last report, and conditions that were last reported more
    /// than [`REPORT_INTERVAL`] ago.
    pub(in crate::gpu) fn changes(
        &self,
        mut conditions: Vec<(String, Condition)>,
        now: DateTime<Utc>,
    ) -> Vec<(String, Condition)> {
        conditions.retain(|(uuid, condition)| {
            let reported = self.0.get(uuid);
            reported.is_none_or(|(last, time)| last != condition || now - *time >= REPORT_INTERVAL)
        });
        conditions
    }

    /// Records that the conditions were reported.
    pub(in crate::gpu) fn remember(
        &mut self,
        conditions: impl IntoIterator<Item = (String, Condition)>,
        now: DateTime<Utc>,
    ) {
        let reported = conditions.into_iter().map(|(uuid, condition)| (uuid, (condition, now)));
        self.0.extend(reported);
    }
}

impl EventStore {
    /// Stores events and conditions until shutdown, then stores the rest.
    pub(in crate::gpu) async fn run(self, shutdown: CancellationToken) {
        let mut reported = ReportedConditions::default();
        let mut away: Option<Duration> = None;
        loop {
            let pause = away.unwrap_or(POLL_INTERVAL);
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = sleep(pause) => {}
                () = self.queue.wait_for_event(), if away.is_none() => {}
            }
            self.queue.flush_summaries(Some(Instant::now().into_std()));
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
                    away = Some((pause * 2).min(MAX_PAUSE));
                }
            }
        }
        self.queue.flush_summaries(None);
        let rest = self.store_all(&mut reported, away.is_some());
        let stored = timeout(FLUSH_TIMEOUT, rest).await;
        if !matches!(stored, Ok(Ok(()))) {
            let lost = self.queue.unstored_occurrences();
            tracing::warn!(lost, "the last GPU events could not be stored");
        }
    }

    /// Stores all queued events, then the changed conditions. After a failure, events that are
    /// stored already are skipped, because the answer to a successful commit may have been lost.
    async fn store_all(&self, reported: &mut ReportedConditions, mut after_failure: bool) -> Result<()> {
        loop {
            let events = self.queue.peek(MAX_EVENTS_PER_TRANSACTION);
            if events.is_empty() {
                break;
            }
            let mut conditions = HashMap::new();
            for event in &events {
                let new_conditions = event.conditions.iter().cloned();
                conditions.extend(new_conditions.filter(|(uuid, _)| self.conditions.may_report(uuid)));
            }
            let conditions: Vec<_> = conditions.into_iter().collect();
            let mut models: Vec<_> = events.iter().map(|event| event.to_model(&self.host)).collect();
            if std::mem::take(&mut after_failure) {
                self.retain_unstored(&mut models).await?;
            }
            let stored = models.clone();
            self.db.write(async |tx| insert(tx, models, &conditions).await).await?;
            self.counts.add(&stored);
            self.queue.remove(events.len());
        }
        self.store_conditions(reported).await
    }

    async fn retain_unstored(&self, models: &mut Vec<gpu_event::Model>) -> Result<()> {
        let times = models.iter().map(|model| model.occurred_at);
        let (Some(first), Some(last)) = (times.clone().min(), times.max()) else {
            return Ok(());
        };
        let mut stored = gpu_event::Entity::find()
            .filter(gpu_event::Column::Host.eq(&self.host))
            .filter(gpu_event::Column::OccurredAt.between(first, last))
            .all(self.db.reader())
            .await?;
        models.retain(|model| {
            // The detail may have been completed since the first attempt.
            let is_same = |stored: &gpu_event::Model| {
                *model == gpu_event::Model { id: model.id, detail: model.detail.clone(), ..stored.clone() }
            };
            // Each stored row matches one event, because two events may be equal.
            let index = stored.iter().position(is_same);
            index.map(|index| stored.swap_remove(index)).is_none()
        });
        Ok(())
    }

    /// Stores changed conditions, and unchanged conditions that are due.
    async fn store_conditions(&self, reported: &mut ReportedConditions) -> Result<()> {
        let now = entity::now();
        let changes = reported.changes(self.conditions.reported(), now);
        if changes.is_empty() {
            return Ok(());
        }
        let has_row = self.db.write(async |tx| update_conditions(tx, &changes, now).await).await?;
        // A GPU without a row gets one with its first sample.
        let stored = changes.into_iter().zip(has_row).filter(|(_, has_row)| *has_row);
        reported.remember(stored.map(|(condition, _)| condition), now);
        Ok(())
    }
}

/// Inserts events, announces them, and updates the conditions of GPUs. The database assigns the
/// ids.
pub(in crate::gpu) async fn insert(
    tx: &DatabaseTransaction,
    events: Vec<gpu_event::Model>,
    conditions: &[(String, Condition)],
) -> Result<()> {
    let mut changes = Vec::with_capacity(events.len());
    for event in events {
        let mut row = gpu_event::ActiveModel::from(event).reset_all();
        row.id = NotSet;
        changes.push(to_record(row.insert(tx).await?.into()));
    }
    update_conditions(tx, conditions, entity::now()).await?;
    feed::record(tx, changes).await
}

/// Updates the conditions in `gpus`. Returns for each condition, in the given order, whether the
/// GPU has a row.
async fn update_conditions(
    tx: &DatabaseTransaction,
    conditions: &[(String, Condition)],
    now: DateTime<Utc>,
) -> Result<Vec<bool>> {
    let mut ordered: Vec<_> = conditions.iter().enumerate().collect();
    // Ordered by UUID, so that two processes lock the rows in the same order.
    ordered.sort_by(|(_, (a, _)), (_, (b, _))| a.cmp(b));
    let mut has_row = vec![false; conditions.len()];
    for (index, (uuid, condition)) in ordered {
        let updated = gpu::Entity::update_many()
            .set(gpu::ActiveModel::from(*condition))
            .col_expr(gpu::Column::ReportedAt, Expr::value(now))
            .filter(gpu::Column::Uuid.eq(uuid))
            .exec(tx)
            .await?;
        has_row[index] = updated.rows_affected > 0;
    }
    Ok(has_row)
}

impl From<Condition> for gpu::ActiveModel {
    fn from(condition: Condition) -> Self {
        Self {
            state: Set(to_state(condition.state)),
            memory_pressure: Set(condition.memory_pressure.and_then(to_pressure)),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}

fn to_state(state: GpuState) -> Option<gpu::GpuState> {
    match state {
        GpuState::Unspecified => None,
        GpuState::Ok => Some(gpu::GpuState::Ok),
        GpuState::Unresponsive => Some(gpu::GpuState::Unresponsive),
        GpuState::Lost => Some(gpu::GpuState::Lost),
        GpuState::Asleep => Some(gpu::GpuState::Asleep),
        GpuState::Unknown => Some(gpu::GpuState::Unknown),
    }
}

fn to_pressure(pressure: crate::pb::MemoryPressure) -> Option<gpu::MemoryPressure> {
    use crate::pb::MemoryPressure;
    match pressure {
        MemoryPressure::Unspecified => None,
        MemoryPressure::Normal => Some(gpu::MemoryPressure::Normal),
        MemoryPressure::Warning => Some(gpu::MemoryPressure::Warning),
        MemoryPressure::Critical => Some(gpu::MemoryPressure::Critical),
    }
}

impl gpu::Model {
    /// Condition of the GPU as last reported. Unknown if the host has been silent for
    /// [`SILENCE_TIMEOUT`].
    pub(in crate::gpu) fn condition(&self, now: DateTime<Utc>) -> Condition {
        let is_current = self.reported_at.is_some_and(|reported_at| now - reported_at < SILENCE_TIMEOUT);
        let state = self.state.filter(|_| is_current);
        Condition {
            state: state.map_or(GpuState::Unknown, Into::into),
            memory_pressure: self.memory_pressure.filter(|_| is_current).map(Into::into),
        }
    }
}

proto_enum!(gpu::GpuState, GpuState { Ok, Unresponsive, Lost, Asleep, Unknown });
proto_enum!(gpu::MemoryPressure, crate::pb::MemoryPressure { Normal, Warning, Critical });
