//! Snapshots: the state at one moment, for watches that start with it.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use prost::Message;
use sea_orm::{ColumnTrait, Condition, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use tokio::sync::Mutex;

use super::announcement::{Announcement, Feed};
use crate::{
    db::Db,
    entity::alert::{self, AlertStatus},
    error::Result,
    feed::Start,
    gpu::GpuStats,
    pb::{self, watch_response::Update},
    rpc::limits::snapshots::{self, Reservation, SnapshotMemory},
};

/// Number of alerts per query.
const ALERTS_PER_QUERY: u64 = 1_000;

/// Memory use of an alert in a snapshot, as a multiple of its encoded size, because the alert is
/// kept encoded and decoded.
const MEMORY_FACTOR: u64 = 3;

/// State at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// Position at which the feed continues after the snapshot.
    pub start: Start,
    /// Alerts with the status pending or delivered, oldest first.
    pub alerts: Arc<snapshots::Snapshot<Arc<Announcement>>>,
    /// Newest stored sample of every GPU.
    pub gpu_stats: Vec<pb::GpuStats>,
}

/// Source of snapshots. Callers that arrive during a snapshot share the next one.
pub struct Snapshots {
    db: Db,
    feed: Feed,
    gpus: GpuStats,
    memory: SnapshotMemory,
    /// Last snapshot and the start of its queries. The snapshot lives as long as a watch sends it.
    last: Mutex<Option<(Instant, Weak<Snapshot>)>>,
}

impl Snapshots {
    /// Snapshots of the database and the GPUs. `memory` limits their size.
    pub fn new(db: Db, feed: Feed, gpus: GpuStats, memory: SnapshotMemory) -> Self {
        Self { db, feed, gpus, memory, last: Mutex::new(None) }
    }

    /// Snapshot of a moment after the call.
    pub(super) async fn take(&self) -> Result<Arc<Snapshot>> {
        let requested_at = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((started_at, snapshot)) = &*last
            && *started_at >= requested_at
            && let Some(snapshot) = snapshot.upgrade()
        {
            return Ok(snapshot);
        }
        let started_at = Instant::now();
        let snapshot = Arc::new(self.load().await?);
        *last = Some((started_at, Arc::downgrade(&snapshot)));
        Ok(snapshot)
    }

    async fn load(&self) -> Result<Snapshot> {
        // Callers share the result, so this takes a connection for short reads, and no watch waits
        // for scans.
        let tx = self.db.snapshot().await?;
        let start = self.feed.now_in(&tx).await?;
        let mut reservation = self.memory.reserve();
        let open_alerts = load_open_alerts(&tx, &mut reservation).await?;
        tx.rollback().await?;
        let alerts = self.memory.store(open_alerts, reservation);
        Ok(Snapshot { start, alerts, gpu_stats: self.gpus.latest_samples().await? })
    }
}

async fn load_open_alerts(tx: &DatabaseTransaction, reservation: &mut Reservation) -> Result<Vec<Arc<Announcement>>> {
    use alert::Column::{CreatedAt, Id, Status};

    let mut alerts = Vec::new();
    let mut last = None;
    loop {
        let mut query = alert::Entity::find()
            .filter(Status.is_in([AlertStatus::Pending, AlertStatus::Delivered]))
            .order_by_asc(CreatedAt)
            .order_by_asc(Id)
            .limit(ALERTS_PER_QUERY);
        if let Some((created_at, id)) = last {
            let same_time = Condition::all().add(CreatedAt.eq(created_at)).add(Id.gt(id));
            query = query.filter(Condition::any().add(CreatedAt.gt(created_at)).add(same_time));
        }
        let page = query.all(tx).await?;
        last = page.last().map(|alert| (alert.created_at, alert.id));
        let is_full = page.len() as u64 == ALERTS_PER_QUERY;
        for alert in page {
            let alert = to_existing(alert);
            reservation.grow(alert.encoded.len() as u64 * MEMORY_FACTOR)?;
            alerts.push(Arc::new(alert));
        }
        if !is_full {
            return Ok(alerts);
        }
    }
}

fn to_existing(alert: alert::Model) -> Announcement {
    let change = pb::AlertChange { kind: pb::AlertChangeKind::Existing.into(), alert: Some(alert.into()) };
    let response = pb::WatchResponse { update: Some(Update::Alert(change)), ..Default::default() };
    Announcement { encoded: response.encode_to_vec().into(), update: response.update }
}
