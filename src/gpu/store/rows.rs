//! The rows of samples, and of the GPUs that they are of.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveModelTrait, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect, Set,
    sea_query::{Expr, Func, OnConflict},
};

use super::queue::Row;
use crate::{
    db::{Db, bulk::insert_all},
    entity::{self, gpu, gpu_stats},
    error::Result,
    gpu::columns::{has_values, recorded_at},
    pb,
};

/// How many samples go into one transaction, or one request.
pub(crate) const BATCH: usize = 500;

/// How exact `gpus.last_seen_at` is.
const SEEN_EVERY: TimeDelta = TimeDelta::minutes(1);

/// Of how many GPUs it is remembered what was written to `gpus`: whoever reports names them as they
/// like.
const MOST_SEEN: usize = 1_000;

/// What was written to `gpus`, and when it will be worth while again.
#[derive(Debug, Default)]
pub(crate) struct Seen(HashMap<String, (Arc<pb::Gpu>, DateTime<Utc>)>);

/// What is to be written to `gpus`: by UUID, so that all lock the rows in one order.
pub(crate) type News = BTreeMap<String, Sighting>;

/// A GPU, and when it was seen.
#[derive(Debug)]
pub(crate) struct Sighting {
    gpu: Arc<pb::Gpu>,
    first: DateTime<Utc>,
    last: DateTime<Utc>,
}

impl Seen {
    /// What these samples say of their GPUs that is new. A sample without values says nothing.
    pub(crate) fn news<'a, G: Fn() -> Arc<pb::Gpu>>(
        &self,
        samples: impl Iterator<Item = (&'a pb::GpuStats, G)>,
    ) -> News {
        let mut news = News::new();
        let present = entity::now();
        for (stats, gpu) in samples.filter(|(stats, _)| has_values(stats)) {
            // Else a sample from the future would keep out what later ones say of the GPU.
            let at = recorded_at(stats).min(present);
            let uuid = stats.gpu_uuid.clone().unwrap_or_default();
            news.entry(uuid)
                .and_modify(|seen| {
                    seen.first = seen.first.min(at);
                    if seen.last < at {
                        (seen.gpu, seen.last) = (gpu(), at);
                    }
                })
                .or_insert_with(|| Sighting {
                    gpu: gpu(),
                    first: at,
                    last: at,
                });
        }
        news.retain(|uuid, now| {
            let known = self.0.get(uuid);
            known.is_none_or(|(gpu, last)| *gpu != now.gpu || now.last - *last >= SEEN_EVERY)
        });
        news
    }

    /// Remembers what was written.
    pub(crate) fn remember(&mut self, news: News) {
        if self.0.len() > MOST_SEEN {
            self.0.clear();
        }
        let news = news.into_iter();
        self.0
            .extend(news.map(|(uuid, seen)| (uuid, (seen.gpu, seen.last))));
    }
}

/// Inserts samples, and what is new of their GPUs.
pub(crate) async fn insert<'a>(
    tx: &DatabaseTransaction,
    samples: impl Iterator<Item = &'a pb::GpuStats>,
    news: &News,
) -> Result<()> {
    let samples: Vec<_> = samples.map(gpu_stats::ActiveModel::from).collect();
    insert_all(tx, samples).await?;
    if !news.is_empty() {
        gpu::Entity::insert_many(news.values().map(row))
            .on_conflict(unless_it_is_older())
            .exec_without_returning(tx)
            .await?;
    }
    Ok(())
}

/// Leaves out the samples that are stored already.
pub(crate) async fn leave_out_stored(db: &Db, rows: &mut Vec<Row>) -> Result<()> {
    use gpu_stats::COLUMN;
    let times = rows.iter().map(|row| recorded_at(&row.reading.stats));
    let (Some(first), Some(last)) = (times.clone().min(), times.max()) else {
        return Ok(());
    };
    let stored = gpu_stats::Entity::find()
        .select_only()
        .columns([gpu_stats::Column::GpuUuid, gpu_stats::Column::RecordedAt])
        .filter(COLUMN.recorded_at.between(first, last))
        .into_tuple()
        .all(db.reader())
        .await?;
    let stored: HashSet<(Option<String>, DateTime<Utc>)> = stored.into_iter().collect();
    rows.retain(|row| {
        let stats = &row.reading.stats;
        !stored.contains(&(stats.gpu_uuid.clone(), recorded_at(stats)))
    });
    Ok(())
}

fn row(seen: &Sighting) -> gpu::ActiveModel {
    let gpu = &seen.gpu;
    gpu::ActiveModel {
        uuid: Set(gpu.uuid.clone()),
        host: Set(gpu.host.clone()),
        gpu_index: Set(gpu.gpu_index),
        name: Set(gpu.name.clone()),
        pci_bus_id: Set(gpu.pci_bus_id.clone()),
        mig_parent_uuid: Set(gpu.mig_parent_uuid.clone()),
        driver_version: Set(gpu.driver_version.clone()),
        first_seen_at: Set(seen.first),
        last_seen_at: Set(seen.last),
        ..<gpu::ActiveModel as ActiveModelTrait>::default()
    }
}

/// Changes what is kept of a GPU, unless that is from a later sample. What is not known this time stays
/// known.
fn unless_it_is_older() -> OnConflict {
    use gpu::Column::{
        DriverVersion, GpuIndex, Host, LastSeenAt, MigParentUuid, Name, PciBusId, Uuid,
    };
    let column = |column| Expr::col((gpu::Entity, column));
    let new = |column: gpu::Column| Expr::col(("excluded", column));
    let kept = |name: gpu::Column| (name, Func::coalesce([new(name), column(name)]).into());
    OnConflict::column(Uuid)
        .update_columns([Host, MigParentUuid, LastSeenAt])
        .values([GpuIndex, Name, PciBusId, DriverVersion].map(kept))
        .action_and_where(sea_orm::sea_query::ExprTrait::lte(
            column(LastSeenAt),
            new(LastSeenAt),
        ))
        .to_owned()
}
