//! What there is at one moment, for watches that start with it.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use prost::Message;
use sea_orm::{
    ColumnTrait, Condition, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};
use tokio::sync::Mutex;

use super::{Announcement, Feed};
use crate::{
    db::Db,
    entity::alert::{self, AlertStatus},
    error::Result,
    feed::Start,
    gpu::GpuStats,
    pb::{self, watch_response::Update},
    rpc::limits::snapshots::{self, Reservation, SnapshotMemory},
};

/// How many alerts are read at a time.
const PAGE: u64 = 1_000;

/// Size of an alert in a snapshot, as a multiple of its encoded size: it is kept encoded and decoded.
const EXPANSION: u64 = 3;

/// What there is at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// Where the feed goes on after it.
    pub start: Start,
    /// The alerts that are pending or delivered, oldest first.
    pub alerts: Arc<snapshots::Snapshot<Arc<Announcement>>>,
    /// The newest stored sample of every GPU.
    pub gpu_stats: Vec<pb::GpuStats>,
}

/// Takes snapshots. Those who ask while one is being taken share the next one.
pub struct Snapshots {
    db: Db,
    feed: Feed,
    gpus: GpuStats,
    memory: SnapshotMemory,
    /// When the last one was begun. It is kept for as long as somebody sends it.
    last: Mutex<Option<(Instant, Weak<Snapshot>)>>,
}

impl Snapshots {
    /// Snapshots of this database and its GPUs, which take the `memory`.
    pub fn new(db: Db, feed: Feed, gpus: GpuStats, memory: SnapshotMemory) -> Self {
        Self {
            db,
            feed,
            gpus,
            memory,
            last: Mutex::new(None),
        }
    }

    /// A snapshot of a moment after this is called.
    pub(super) async fn take(&self) -> Result<Arc<Snapshot>> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((begun, snapshot)) = &*last
            && *begun >= asked
            && let Some(snapshot) = snapshot.upgrade()
        {
            return Ok(snapshot);
        }
        let begun = Instant::now();
        let snapshot = Arc::new(self.read().await?);
        *last = Some((begun, Arc::downgrade(&snapshot)));
        Ok(snapshot)
    }

    async fn read(&self) -> Result<Snapshot> {
        // All callers share what is read, so that this takes one of the connections for short reads, and no watch waits
        // for scans.
        let tx = self.db.snapshot().await?;
        let start = self.feed.now_in(&tx).await?;
        let mut reservation = self.memory.reserve();
        let alerts = open_alerts(&tx, &mut reservation).await?;
        tx.rollback().await?;
        let alerts = self.memory.store(alerts, reservation);
        Ok(Snapshot {
            start,
            alerts,
            gpu_stats: self.gpus.latest_of_all().await?,
        })
    }
}

async fn open_alerts(
    tx: &DatabaseTransaction,
    reservation: &mut Reservation,
) -> Result<Vec<Arc<Announcement>>> {
    use alert::Column::{CreatedAt, Id, Status};

    let mut alerts = Vec::new();
    let mut last = None;
    loop {
        let mut page = alert::Entity::find()
            .filter(Status.is_in([AlertStatus::Pending, AlertStatus::Delivered]))
            .order_by_asc(CreatedAt)
            .order_by_asc(Id)
            .limit(PAGE);
        if let Some((created_at, id)) = last {
            let same_time = Condition::all()
                .add(CreatedAt.eq(created_at))
                .add(Id.gt(id));
            page = page.filter(
                Condition::any()
                    .add(CreatedAt.gt(created_at))
                    .add(same_time),
            );
        }
        let page = page.all(tx).await?;
        last = page.last().map(|alert| (alert.created_at, alert.id));
        let full = page.len() as u64 == PAGE;
        for alert in page {
            let alert = existing(alert);
            reservation.grow(alert.encoded.len() as u64 * EXPANSION)?;
            alerts.push(Arc::new(alert));
        }
        if !full {
            return Ok(alerts);
        }
    }
}

fn existing(alert: alert::Model) -> Announcement {
    let change = pb::AlertChange {
        kind: pb::AlertChangeKind::Existing.into(),
        alert: Some(alert.into()),
    };
    let response = pb::WatchResponse {
        update: Some(Update::Alert(change)),
        ..Default::default()
    };
    Announcement {
        encoded: response.encode_to_vec().into(),
        update: response.update,
    }
}
