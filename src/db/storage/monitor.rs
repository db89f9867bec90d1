//! Monitor of the storage: checks the files, and probes an idle or faulty database.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Storage;
use crate::{
    db::Db,
    error::{Result, StorageFault},
};

/// Pause between two checks of the files, and between two probes of a faulty database.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum duration of a probe, longer than any transaction: a long transaction of another writer
/// is not a fault.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum pause between two integrity checks of a corrupt database, because a check reads the
/// whole file.
const MAX_CHECK_PAUSE: Duration = Duration::from_mins(5);

impl Storage {
    /// Monitors the storage until shutdown, and calls `report` with every change of the fault.
    /// Returns early if the database file was replaced, which requires a new process.
    pub async fn monitor(&self, db: &Db, report: impl Fn(Option<StorageFault>), shutdown: CancellationToken) {
        let monitoring = async {
            let mut checks = IntegrityChecks::default();
            loop {
                // A failed write is stronger evidence than a probe that may succeed a moment later.
                let fault = match self.take_report() {
                    Some(fault) => Some(fault),
                    None => self.detect_fault(db, &mut checks).await,
                };
                if fault == Some(StorageFault::Replaced)
                    && let Some(files) = &self.0.files
                {
                    files.rename_stale_log();
                }
                self.set(fault, &report);
                if fault == Some(StorageFault::Replaced) {
                    return;
                }
                // After a fault the next check is a second away, so that health does not flap with
                // every write.
                let next_report = async {
                    if fault.is_some() {
                        std::future::pending::<()>().await;
                    }
                    self.0.failure_reported.notified().await;
                };
                let _ = timeout(CHECK_INTERVAL, next_report).await;
            }
        };
        shutdown.run_until_cancelled(monitoring).await;
    }

    /// Checks for a fault that prevents writes.
    async fn detect_fault(&self, db: &Db, checks: &mut IntegrityChecks) -> Option<StorageFault> {
        if let Some(files) = &self.0.files {
            if let Some(fault) = files.fault() {
                return Some(fault);
            }
            if files.volume_is_full() {
                return Some(StorageFault::Full);
            }
        }
        let before = self.fault();
        if before.is_none() && !self.is_idle() {
            return None;
        }
        if before == Some(StorageFault::Corrupt) && !checks.passes(db).await {
            return before;
        }
        let was_full = before == Some(StorageFault::Full);
        match timeout(PROBE_TIMEOUT, probe(db, was_full)).await {
            Ok(Ok(())) => None,
            // An unreachable database is reported separately.
            Ok(Err(error)) => error.storage_fault().or(before),
            Err(_) => Some(StorageFault::NotAnswering),
        }
    }
}

/// Integrity checks of a corrupt database, with increasing pauses.
struct IntegrityChecks {
    next: Instant,
    pause: Duration,
}

impl Default for IntegrityChecks {
    fn default() -> Self {
        Self { next: Instant::now(), pause: CHECK_INTERVAL }
    }
}

impl IntegrityChecks {
    /// Returns true if a check is due and finds the database intact.
    async fn passes(&mut self, db: &Db) -> bool {
        if Instant::now() < self.next {
            return false;
        }
        let is_intact = db.backend() != DbBackend::Sqlite || is_intact(db).await;
        self.pause = if is_intact { CHECK_INTERVAL } else { (self.pause * 2).min(MAX_CHECK_PAUSE) };
        self.next = Instant::now() + self.pause;
        is_intact
    }
}

async fn is_intact(db: &Db) -> bool {
    let check = Statement::from_string(DbBackend::Sqlite, "PRAGMA quick_check(1)");
    let row = db.reader().query_one_raw(check).await.ok().flatten();
    row.and_then(|row| row.try_get_by_index::<String>(0).ok()).is_some_and(|text| text == "ok")
}

/// Runs a write without effect. After a full volume the probe also allocates space, because a small
/// write may fit into allocated pages.
async fn probe(db: &Db, was_full: bool) -> Result<()> {
    db.write_unannounced(async |tx| {
        if db.backend() == DbBackend::Sqlite {
            // The application owns this field, and a new value always writes a page.
            let number = chrono::Utc::now().timestamp() & 0x7FFF_FFFF;
            tx.execute_unprepared(&format!("PRAGMA user_version = {number}")).await?;
            return Ok(());
        }
        tx.execute_unprepared(
            "UPDATE feed_state SET id = id WHERE ctid IN \
            (SELECT ctid FROM feed_state WHERE id = 1 FOR UPDATE SKIP LOCKED)",
        )
        .await?;
        if was_full {
            tx.execute_unprepared(
                "CREATE TEMPORARY TABLE watchpost_probe ON COMMIT DROP AS \
                SELECT md5(number::text) AS filler FROM generate_series(1, 16384) AS number",
            )
            .await?;
        }
        Ok(())
    })
    .await
}
