//! Stores the samples, in batches and off everybody's path, and keeps them while the database is
//! away.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ActiveModelTrait, EntityTrait, Set, sea_query::OnConflict};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    FLUSH_WITHIN,
    columns::{has_values, recorded_at},
    live::Reading,
};
use crate::{
    db::Db,
    entity::{gpu, gpu_stats},
    error::{Chain, Result},
    pb,
};

/// How many rows go into one statement: more are slower, on both databases.
const BATCH: usize = 500;

/// How long a sample may wait for others to be stored with.
const WRITE_EVERY: Duration = Duration::from_secs(2);

/// The longest pause between two attempts while the database is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How old a sample in memory may become, and how many there may be of them all.
const KEEP_FOR: TimeDelta = TimeDelta::minutes(10);
const KEEP_AT_MOST: usize = 20_000;

/// How exact `gpus.last_seen_at` is.
const SEEN_EVERY: TimeDelta = TimeDelta::minutes(1);

/// A sample to be stored.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub gpu: Arc<pb::Gpu>,
    pub reading: Arc<Reading>,
}

/// The samples that are not yet stored. When there are too many, the oldest are dropped.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    batch: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    rows: VecDeque<Row>,
    /// How many rows have left, stored or dropped: the number of the first one that is there.
    left: u64,
    dropped: u64,
}

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
            () = queue.batch.notified(), if away.is_none() => {}
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
        let lost = queue.waiting().rows.len();
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

impl Queue {
    pub(super) fn push(&self, row: Row) {
        let newest = recorded_at(&row.reading.stats);
        let mut waiting = self.waiting();
        waiting.rows.push_back(row);
        let is_old = |row: &Row| newest - recorded_at(&row.reading.stats) > KEEP_FOR;
        while waiting.rows.len() > KEEP_AT_MOST || waiting.rows.front().is_some_and(is_old) {
            if waiting.dropped == 0 {
                tracing::warn!(
                    "the database has been away for too long: the oldest GPU samples are dropped"
                );
            }
            waiting.rows.pop_front();
            waiting.left += 1;
            waiting.dropped += 1;
        }
        if waiting.rows.len() >= BATCH {
            self.batch.notify_one();
        }
    }

    /// The oldest rows, and the number of the first one after them. They stay.
    fn first(&self, most: usize) -> (Vec<Row>, u64) {
        let waiting = self.waiting();
        let rows: Vec<_> = waiting.rows.iter().take(most).cloned().collect();
        let end = waiting.left + rows.len() as u64;
        (rows, end)
    }

    /// Removes the rows before that number, some of which may have been dropped meanwhile.
    fn remove_up_to(&self, end: u64) {
        let mut waiting = self.waiting();
        while waiting.left < end && waiting.rows.pop_front().is_some() {
            waiting.left += 1;
        }
    }

    /// How many rows were dropped since this was last asked.
    fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.waiting().dropped)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gpu_row(gpu: &pb::Gpu, seen_at: DateTime<Utc>) -> gpu::ActiveModel {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::time::to_proto;

    fn row(seconds: i64) -> Row {
        let recorded_at = DateTime::from_timestamp(1_800_000_000 + seconds, 0).map(to_proto);
        let stats = pb::GpuStats {
            recorded_at,
            ..Default::default()
        };
        Row {
            gpu: Arc::default(),
            reading: Arc::new(Reading::new(1, stats)),
        }
    }

    fn waiting(queue: &Queue) -> Vec<i64> {
        let (rows, _) = queue.first(usize::MAX);
        rows.iter()
            .map(|row| recorded_at(&row.reading.stats).timestamp() - 1_800_000_000)
            .collect()
    }

    #[test]
    fn ten_minutes_of_samples_are_kept_and_the_oldest_dropped() {
        let queue = Queue::default();
        for second in [0, 1, 600, 601, 1201] {
            queue.push(row(second));
        }
        assert_eq!(waiting(&queue), [601, 1201]);
        assert_eq!((queue.take_dropped(), queue.take_dropped()), (3, 0));
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for() {
        let queue = Queue::default();
        for _ in 0..KEEP_AT_MOST + 7 {
            queue.push(row(0));
        }
        assert_eq!(waiting(&queue).len(), KEEP_AT_MOST);
        assert_eq!(queue.take_dropped(), 7);
    }

    #[test]
    fn rows_that_are_dropped_while_a_batch_is_stored_are_not_counted_twice() {
        let queue = Queue::default();
        for second in [0, 1, 2, 3] {
            queue.push(row(second));
        }
        let (batch, end) = queue.first(3);
        assert_eq!(batch.len(), 3);
        queue.push(row(602));
        assert_eq!(waiting(&queue), [2, 3, 602]);
        queue.remove_up_to(end);
        assert_eq!(waiting(&queue), [3, 602]);
    }
}
