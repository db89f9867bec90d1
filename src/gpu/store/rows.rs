//! Rows of samples, and of the GPUs of these samples.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveModelTrait, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect, Set,
    sea_query::{Expr, Func, OnConflict},
};

use super::queue::QueuedSample;
use crate::{
    db::{Db, bulk::insert_all},
    entity::{self, gpu, gpu_stats},
    error::Result,
    gpu::columns::{has_values, recorded_at},
    pb,
};

/// Precision of `gpus.last_seen_at`: the age of the stored value at which a newer sample updates
/// the row.
const LAST_SEEN_PRECISION: TimeDelta = TimeDelta::minutes(1);

/// Upper bound of GPUs in the cache of written rows, because reporters choose the UUIDs.
const MAX_CACHED_GPUS: usize = 1_000;

/// Cache of the facts last written to `gpus`, with the time of the sample, by UUID.
#[derive(Debug, Default)]
pub(crate) struct WrittenGpus(HashMap<String, (Arc<pb::Gpu>, DateTime<Utc>)>);

/// Rows to write to `gpus`, by UUID, so that all transactions lock the rows in one order.
pub(crate) type GpuUpdates = BTreeMap<String, GpuUpdate>;

/// Facts about a GPU, with the times of its first and last sample in a batch.
#[derive(Debug)]
pub(crate) struct GpuUpdate {
    gpu: Arc<pb::Gpu>,
    first: DateTime<Utc>,
    last: DateTime<Utc>,
}

impl WrittenGpus {
    /// Updates for `gpus` from samples. Samples without values are ignored, and so are facts that
    /// were written recently.
    pub(crate) fn updates<'a, G: Fn() -> Arc<pb::Gpu>>(
        &self,
        samples: impl Iterator<Item = (&'a pb::GpuStats, G)>,
    ) -> GpuUpdates {
        let mut updates = GpuUpdates::new();
        let present = entity::now();
        for (stats, gpu) in samples.filter(|(stats, _)| has_values(stats)) {
            // A time in the future would prevent updates from later samples.
            let time = recorded_at(stats).min(present);
            let uuid = stats.gpu_uuid.clone().unwrap_or_default();
            updates
                .entry(uuid)
                .and_modify(|update| {
                    update.first = update.first.min(time);
                    if update.last < time {
                        (update.gpu, update.last) = (gpu(), time);
                    }
                })
                .or_insert_with(|| GpuUpdate { gpu: gpu(), first: time, last: time });
        }
        updates.retain(|uuid, update| {
            let written = self.0.get(uuid);
            written.is_none_or(|(gpu, last)| *gpu != update.gpu || update.last - *last >= LAST_SEEN_PRECISION)
        });
        updates
    }

    /// Records that the updates were written.
    pub(crate) fn remember(&mut self, updates: GpuUpdates) {
        if self.0.len() > MAX_CACHED_GPUS {
            self.0.clear();
        }
        let written = updates.into_iter().map(|(uuid, update)| (uuid, (update.gpu, update.last)));
        self.0.extend(written);
    }
}

/// Inserts samples, and applies the updates to `gpus`.
pub(crate) async fn insert<'a>(
    tx: &DatabaseTransaction,
    samples: impl Iterator<Item = &'a pb::GpuStats>,
    updates: &GpuUpdates,
) -> Result<()> {
    let rows: Vec<_> = samples.map(gpu_stats::ActiveModel::from).collect();
    insert_all(tx, rows).await?;
    if !updates.is_empty() {
        gpu::Entity::insert_many(updates.values().map(active_model))
            .on_conflict(on_gpu_conflict())
            .exec_without_returning(tx)
            .await?;
    }
    Ok(())
}

/// Removes the samples that are stored already.
pub(crate) async fn retain_unstored(db: &Db, rows: &mut Vec<QueuedSample>) -> Result<()> {
    use gpu_stats::COLUMN;
    let times = rows.iter().map(|row| recorded_at(&row.reading.stats));
    let (Some(first), Some(last)) = (times.clone().min(), times.max()) else {
        return Ok(());
    };
    let keys = gpu_stats::Entity::find()
        .select_only()
        .columns([gpu_stats::Column::GpuUuid, gpu_stats::Column::RecordedAt])
        .filter(COLUMN.recorded_at.between(first, last))
        .into_tuple()
        .all(db.reader())
        .await?;
    let stored: HashSet<(Option<String>, DateTime<Utc>)> = keys.into_iter().collect();
    rows.retain(|row| {
        let stats = &row.reading.stats;
        !stored.contains(&(stats.gpu_uuid.clone(), recorded_at(stats)))
    });
    Ok(())
}

fn active_model(update: &GpuUpdate) -> gpu::ActiveModel {
    let gpu = &update.gpu;
    gpu::ActiveModel {
        uuid: Set(gpu.uuid.clone()),
        host: Set(gpu.host.clone()),
        gpu_index: Set(gpu.gpu_index),
        name: Set(gpu.name.clone()),
        pci_bus_id: Set(gpu.pci_bus_id.clone()),
        mig_parent_uuid: Set(gpu.mig_parent_uuid.clone()),
        driver_version: Set(gpu.driver_version.clone()),
        first_seen_at: Set(update.first),
        last_seen_at: Set(update.last),
        ..<gpu::ActiveModel as ActiveModelTrait>::default()
    }
}

/// Updates the row of a GPU, unless a later sample updated the row. Known facts are kept where the
/// new sample does not know them.
fn on_gpu_conflict() -> OnConflict {
    use gpu::Column::{DriverVersion, GpuIndex, Host, LastSeenAt, MigParentUuid, Name, PciBusId, Uuid};
    let column = |column| Expr::col((gpu::Entity, column));
    let new = |column: gpu::Column| Expr::col(("excluded", column));
    let keep_known = |name: gpu::Column| (name, Func::coalesce([new(name), column(name)]).into());
    OnConflict::column(Uuid)
        .update_columns([Host, MigParentUuid, LastSeenAt])
        .values([GpuIndex, Name, PciBusId, DriverVersion].map(keep_known))
        .action_and_where(sea_orm::sea_query::ExprTrait::lte(column(LastSeenAt), new(LastSeenAt)))
        .to_owned()
}
