//! GPUs: what is sampled, what becomes of it, and what the driver may do meanwhile.
//!
//! They are those of a fake driver. What is said here of [`LiveGpus`] holds for what clients watch.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use watchpost::{
    db::{self, Db},
    gpu::{self, Detections, LiveGpus, Reading},
    pb::{self, AbsentReason},
};

use crate::support::{
    PATIENCE,
    database::{Backend, TestDatabase, on_both},
    fake_nvml::{Card, FakeNvml},
};

mod agent;
mod claims;
mod events;
mod faults;
mod future;
mod history;
mod lost_answers;
mod profiles;
mod relay;
mod report;
mod rpc;
mod swaps;
mod values;

const INTERVAL: Duration = Duration::from_millis(20);

/// The samplers at work, with a database of their own.
struct Rig {
    live: LiveGpus,
    db: Db,
    running: gpu::GpuTasks,
    health: watch::Receiver<bool>,
    shutdown: CancellationToken,
    database: TestDatabase,
}

impl Rig {
    async fn start(fake: &FakeNvml) -> Self {
        Self::on(TestDatabase::migrated(Backend::Sqlite).await, fake, INTERVAL).await
    }

    async fn on(database: TestDatabase, fake: &FakeNvml, interval: Duration) -> Self {
        // Every value in every sample, however fast they follow each other.
        let tiers = gpu::Tiers { warm: Duration::ZERO, cold: Duration::ZERO, budget: Duration::from_hours(1) };
        Self::with_tiers(database, fake, interval, tiers).await
    }

    async fn with_tiers(database: TestDatabase, fake: &FakeNvml, interval: Duration, tiers: gpu::Tiers) -> Self {
        let url = database.url().into();
        let settings = db::Settings { url, connections: 4, sqlite_synchronous: db::Synchronous::Normal };
        let db = Db::connect(&settings).await.unwrap();
        let settings = gpu::Settings {
            library: Some(fake.library()),
            interval,
            host: "camera-box".into(),
            tiers,
            kernel_log: None,
            sysfs: fake.sysfs(),
            detections: Detections::default(),
        };
        let (live, shutdown) = (LiveGpus::default(), CancellationToken::new());
        let (healthy, health) = watch::channel(false);
        let hear = move |serving| {
            healthy.send_replace(serving);
        };
        let running = gpu::start(settings, db.clone(), live.clone(), hear, shutdown.clone()).await;
        Self { live, db, running, health, shutdown, database }
    }

    /// The first readings that `good` accepts, by UUID.
    async fn readings(&self, good: impl Fn(&BTreeMap<String, Arc<Reading>>) -> bool) -> BTreeMap<String, Arc<Reading>> {
        let mut changed = self.live.changed();
        let waiting = async {
            loop {
                let readings = self.live.readings().into_iter();
                let readings = readings.map(|reading| (reading.stats.gpu_uuid.clone().unwrap(), reading)).collect();
                if good(&readings) {
                    return readings;
                }
                changed.changed().await.unwrap();
            }
        };
        let seen = || self.live.readings();
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("this is what there was at last: {:#?}", seen()))
    }

    /// A sample of this GPU of which every call was made after this one.
    async fn next(&self, uuid: &str) -> pb::GpuStats {
        let before = self.live.reading(uuid).map_or(0, |reading| reading.number);
        let readings = self.readings(|all| all.get(uuid).is_some_and(|reading| reading.number >= before + 2)).await;
        readings[uuid].stats.clone()
    }

    async fn healthy(&mut self, expected: bool) {
        let healthy = self.health.wait_for(|healthy| *healthy == expected);
        timeout(PATIENCE, healthy).await.expect("a change of health").unwrap();
    }

    /// Stops all, and fails if anything holds it up.
    async fn stop(self) -> TestDatabase {
        self.shutdown.cancel();
        timeout(Duration::from_secs(10), self.running.finish()).await.expect("an end");
        self.db.close().await;
        self.database
    }
}
