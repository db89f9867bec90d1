//! The authoritative clock: the clock of the database, shared by all processes.
//!
//! Cooldowns, leases, schedules, silences and retention use [`now`]. On PostgreSQL the time comes
//! from the database, compared every second, so that a process with a wrong clock decides as all
//! others do. On SQLite the time is the host's clock. Between two comparisons time passes by the
//! monotonic clock, so that a step of the wall clock has no effect before its detection.
//! `server/clock_repair.rs` repairs times stored by a wrong clock.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tokio::{sync::watch, time::timeout};

use crate::{
    db::Db,
    error::{Error, Result},
};

/// Differences up to this value, in microseconds, are measurement noise.
const MAX_NOISE_US: i64 = 2_000;

/// Smallest difference that is reported and counts as a step.
pub(crate) const REPORTED_SKEW: TimeDelta = TimeDelta::seconds(1);

/// Value of [`REPORTED_SKEW`] in microseconds.
const STEP_US: i64 = 1_000_000;

/// Timeout of the query for the time of the database.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Factor by which the retention clock may run faster than the monotonic clock after a step, and
/// its head start.
const CATCH_UP_FACTOR: i64 = 24;
const HEAD_START: TimeDelta = TimeDelta::days(1);

/// Marker for a value that was not measured.
const UNMEASURED: i64 = i64::MIN;

static CLOCK: LazyLock<Clock> = LazyLock::new(|| {
    let start = Instant::now();
    Clock {
        start,
        base: AtomicI64::new(wall()),
        offset: AtomicI64::new(0),
        skew: AtomicI64::new(UNMEASURED),
        steps: AtomicU64::new(0),
        trusted: AtomicI64::new(UNMEASURED),
        trusted_at: AtomicI64::new(0),
        changes: watch::channel(0).0,
    }
});

/// Clock of the process. All numbers are microseconds.
struct Clock {
    start: Instant,
    /// Authoritative time at the start, by the last comparison.
    base: AtomicI64,
    /// Difference of the database clock minus the wall clock.
    offset: AtomicI64,
    /// Difference of the wall clock minus the database clock, by the last measurement.
    skew: AtomicI64,
    /// Number of steps of the authoritative clock.
    steps: AtomicU64,
    /// Trusted lower bound of the time, and its monotonic time: see [`for_retention`].
    trusted: AtomicI64,
    trusted_at: AtomicI64,
    /// Notifies of every step.
    changes: watch::Sender<u64>,
}

/// Returns the authoritative time, in whole microseconds.
pub fn now() -> DateTime<Utc> {
    let clock = &*CLOCK;
    let elapsed = clock.elapsed();
    time(clock.authoritative(wall(), elapsed))
}

/// Returns the time used by retention, which advances slowly after a clock step.
///
/// After a start or a step, the time begins a day after the newest stored change and catches up a
/// day per hour. A clock that is a year ahead therefore deletes little before an operator corrects
/// the clock.
pub fn for_retention() -> DateTime<Utc> {
    let clock = &*CLOCK;
    let trusted = clock.trusted.load(Ordering::Relaxed);
    if trusted == UNMEASURED {
        return now();
    }
    let passed = clock.elapsed() - clock.trusted_at.load(Ordering::Relaxed);
    let bound = time(trusted.saturating_add(passed.saturating_mul(CATCH_UP_FACTOR))) + HEAD_START;
    now().min(bound)
}

/// Returns the difference of this process's clock minus the database clock. `None` before the first
/// measurement, and on SQLite, where both are the same.
pub fn skew() -> Option<TimeDelta> {
    let skew = CLOCK.skew.load(Ordering::Relaxed);
    (skew != UNMEASURED).then(|| TimeDelta::microseconds(skew))
}

/// Returns the number of steps of the authoritative clock by a second or more.
pub fn steps() -> u64 {
    CLOCK.steps.load(Ordering::Relaxed)
}

/// Subscribes to steps of the authoritative clock.
pub(crate) fn changes() -> watch::Receiver<u64> {
    CLOCK.changes.subscribe()
}

/// Records that this time has passed: the time of the newest stored change.
pub(crate) fn trust(stored: DateTime<Utc>) {
    let clock = &*CLOCK;
    let stored = stored.min(now()).timestamp_micros();
    // Several servers in one process share the clock.
    if stored > clock.trusted.fetch_max(stored, Ordering::Relaxed) {
        clock.trusted_at.store(clock.elapsed(), Ordering::Relaxed);
    }
}

/// Checks that the database answers, and compares its clock.
pub(crate) async fn compare(db: &Db) -> Result<()> {
    if db.backend() != DbBackend::Postgres {
        db.ping().await?;
        let (wall, elapsed) = CLOCK.sample();
        CLOCK.apply_comparison(wall, elapsed, None);
        return Ok(());
    }
    let sql = Statement::from_string(DbBackend::Postgres, "SELECT clock_timestamp() AS now");
    let (wall, begun) = CLOCK.sample();
    let row = timeout(QUERY_TIMEOUT, db.reader().query_one_raw(sql)).await;
    let Ok(row) = row else {
        return Err(db.timeout_error().await);
    };
    let row = row?.ok_or_else(|| Error::internal("a query returned no row"))?;
    let database_time: DateTime<Utc> = row.try_get("", "now")?;
    // The query is assumed to run halfway, by the monotonic clock, because the wall clock may have
    // been stepped meanwhile.
    let duration = CLOCK.elapsed() - begun;
    let half = duration / 2;
    let database_time = (database_time.timestamp_micros(), MAX_NOISE_US.max(duration));
    CLOCK.apply_comparison(wall + half, begun + half, Some(database_time));
    Ok(())
}

impl Clock {
    fn elapsed(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    /// Returns the wall clock and the monotonic clock at the same moment.
    fn sample(&self) -> (i64, i64) {
        let mut sample = (wall(), self.elapsed());
        for _ in 0..10 {
            let started_at = self.elapsed();
            let wall = wall();
            let duration = self.elapsed() - started_at;
            sample = (wall, started_at + duration / 2);
            // A longer duration means that the thread was suspended between both readings.
            if duration < MAX_NOISE_US {
                break;
            }
        }
        sample
    }

    /// Returns the authoritative time for the given readings of both clocks.
    fn authoritative(&self, wall: i64, elapsed: i64) -> i64 {
        let expected = self.base.load(Ordering::Relaxed) + elapsed;
        let measured = wall + self.offset.load(Ordering::Relaxed);
        // A larger difference means that the wall clock was stepped since the last comparison.
        let is_steady = (measured - expected).abs() < STEP_US;
        if is_steady { measured } else { expected }
    }

    /// Applies a comparison: both clocks of this process, and the database time with its
    /// measurement error.
    fn apply_comparison(&self, wall: i64, elapsed: i64, database_time: Option<(i64, i64)>) {
        let expected = self.authoritative(wall, elapsed);
        let is_first = database_time.is_some() && self.skew.load(Ordering::Relaxed) == UNMEASURED;
        let (actual, noise) = database_time.unwrap_or((wall, 0));
        self.base.store(actual - elapsed, Ordering::Relaxed);
        if database_time.is_some() {
            let ahead = actual - wall;
            if (ahead - self.offset.load(Ordering::Relaxed)).abs() > noise {
                self.offset.store(ahead, Ordering::Relaxed);
            }
            self.skew.store(-ahead, Ordering::Relaxed);
        }
        let step = actual - expected;
        // Before the first comparison, no decision was based on the clock of this process.
        if is_first || step.abs() - noise < STEP_US {
            return;
        }
        if step > 0 {
            // The expected time has passed in any case.
            self.trusted.store(expected, Ordering::Relaxed);
            self.trusted_at.store(self.elapsed(), Ordering::Relaxed);
        }
        let count = self.steps.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::warn!(seconds = TimeDelta::microseconds(step).as_seconds_f64(), "the authoritative clock was stepped");
        self.changes.send_replace(count);
    }
}

/// Returns the wall clock of the host.
fn wall() -> i64 {
    Utc::now().timestamp_micros()
}

fn time(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}
