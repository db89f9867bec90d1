//! Stores the samples, in batches and off everybody's path.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ActiveModelTrait, EntityTrait, Set, sea_query::OnConflict};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    FLUSH_WITHIN,
    columns::{has_values, recorded_at},
    queue::{Queue, Row},
};
use crate::{
    db::Db,
    entity::{gpu, gpu_stats},
    error::{Chain, Result},
    pb,
};

/// How many rows go into one statement: more are slower, on both databases.
pub(super) const BATCH: usize = 500;

/// How long a sample may wait for others to be stored with.
const WRITE_EVERY: Duration = Duration::from_secs(2);

/// The longest pause between two attempts while the database is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How exact `gpus.last_seen_at` is.
pub(super) const SEEN_EVERY: TimeDelta = TimeDelta::minutes(1);

/// What this process has written to `gpus`.
type Seen = HashMap<String, (Arc<pb::Gpu>, DateTime<Utc>)>;

/// Stores what comes through the queue. When `shutdown` is set, has the samplers stopped and
/// stores the rest, if the database lets it.
pub(super) async fn run(
    db: Db,
    queue: Arc<Queue>,
    shutdown: CancellationToken,
    stop_samplers: impl FnOnce(),
) {
    let mut seen = Seen::new();
    let mut away: Option<Duration> = None;
    loop {
        let pause = away.unwrap_or(WRITE_EVERY);
        let until = Instant::now() + pause;
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep_until(until) => {}
            () = queue.filled(), if away.is_none() => {}
        }
        match store_all(&db, &queue, &mut seen).await {
            Ok(()) => {
                let dropped = queue.take_dropped();
                if away.take().is_some() {
                    tracing::info!(dropped, "GPU samples are stored again");
                }
            }
            Err(error) => {
                if away.is_none() {
                    let error = Chain(&error).to_string();
                    tracing::warn!(
                        error,
                        "GPU samples cannot be stored; they are kept for ten minutes"
                    );
                }
                away = Some((pause * 2).min(LONGEST_PAUSE));
            }
        }
    }
    stop_samplers();
    let stored = timeout(FLUSH_WITHIN, store_all(&db, &queue, &mut seen)).await;
    if !matches!(stored, Ok(Ok(()))) {
        let lost = queue.len();
        tracing::warn!(lost, "the last GPU samples could not be stored");
    }
}

async fn store_all(db: &Db, queue: &Queue, seen: &mut Seen) -> Result<()> {
    loop {
        let (rows, end) = queue.first(BATCH);
        if rows.is_empty() {
            return Ok(());
        }
        store(db, &rows, seen).await?;
        queue.remove_up_to(end);
    }
}

/// Stores the rows, and which GPUs they are of, in one transaction.
async fn store(db: &Db, rows: &[Row], seen: &mut Seen) -> Result<()> {
    let stats: Vec<_> = rows
        .iter()
        .map(|row| gpu_stats::ActiveModel::from(&row.reading.stats))
        .collect();
    // By UUID, so that two processes lock the rows in the same order.
    let mut gpus = BTreeMap::new();
    for row in rows.iter().filter(|row| has_values(&row.reading.stats)) {
        let at = recorded_at(&row.reading.stats);
        let known = seen.get(&row.gpu.uuid);
        if known.is_none_or(|(gpu, last)| *gpu != row.gpu || at - *last >= SEEN_EVERY) {
            gpus.insert(row.gpu.uuid.clone(), (row.gpu.clone(), at));
        }
    }
    db.write(async |tx| {
        gpu_stats::Entity::insert_many(stats)
            .exec_without_returning(tx)
            .await?;
        if !gpus.is_empty() {
            let rows = gpus.values().map(|(gpu, at)| gpu_row(gpu, *at));
            gpu::Entity::insert_many(rows)
                .on_conflict(all_but_first_seen())
                .exec_without_returning(tx)
                .await?;
        }
        Ok(())
    })
    .await?;
    seen.extend(gpus);
    Ok(())
}

pub(super) fn gpu_row(gpu: &pb::Gpu, seen_at: DateTime<Utc>) -> gpu::ActiveModel {
    gpu::ActiveModel {
        uuid: Set(gpu.uuid.clone()),
        host: Set(gpu.host.clone()),
        gpu_index: Set(gpu.gpu_index),
        name: Set(gpu.name.clone()),
        pci_bus_id: Set(gpu.pci_bus_id.clone()),
        mig_parent_uuid: Set(gpu.mig_parent_uuid.clone()),
        driver_version: Set(gpu.driver_version.clone()),
        first_seen_at: Set(seen_at),
        last_seen_at: Set(seen_at),
        ..<gpu::ActiveModel as ActiveModelTrait>::default()
    }
}

fn all_but_first_seen() -> OnConflict {
    use gpu::Column::{
        DriverVersion, GpuIndex, Host, LastSeenAt, MigParentUuid, Name, PciBusId, Uuid,
    };
    OnConflict::column(Uuid)
        .update_columns([
            Host,
            GpuIndex,
            Name,
            PciBusId,
            MigParentUuid,
            DriverVersion,
            LastSeenAt,
        ])
        .to_owned()
}
