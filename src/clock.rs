//! The time that decides: that of the database, which several processes share.
//!
//! Cooldowns, leases, schedules, silences and retention go by [`now`]. On PostgreSQL it is the clock of the database: every
//! second the sign of life asks for it, so that a process whose own clock is wrong decides as all others do. On SQLite it
//! is the clock of the host. Between two signs of life, time passes by the monotonic clock, so that a step of the wall
//! clock changes nothing before it is noticed. What a wrong clock has stored is mended by `server/clock_repair.rs`.

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

/// Differences up to this are those of the comparison.
const NOISE_US: i64 = 2_000;

/// The least difference that is told, and that counts as a step.
pub(crate) const TOLD: TimeDelta = TimeDelta::seconds(1);

/// The same, in microseconds.
const STEP_US: i64 = 1_000_000;

/// Time that the database may take to tell its time.
const WITHIN: Duration = Duration::from_secs(5);

/// Factor by which the time of retention may pass faster than the monotonic clock after a step, and its head start.
const CATCH_UP: i64 = 24;
const HEAD_START: TimeDelta = TimeDelta::days(1);

/// No time: nothing was measured.
const NONE: i64 = i64::MIN;

static CLOCK: LazyLock<Clock> = LazyLock::new(|| {
    let start = Instant::now();
    Clock {
        start,
        base: AtomicI64::new(wall()),
        offset: AtomicI64::new(0),
        skew: AtomicI64::new(NONE),
        steps: AtomicU64::new(0),
        trusted: AtomicI64::new(NONE),
        trusted_at: AtomicI64::new(0),
        changes: watch::channel(0).0,
    }
});

/// The clock of the process. All numbers are microseconds.
struct Clock {
    start: Instant,
    /// The time that decided at the start, by the last comparison.
    base: AtomicI64,
    /// Time by which the clock of the database is ahead of the wall clock.
    offset: AtomicI64,
    /// Time by which the wall clock is ahead of the database, by the last measurement.
    skew: AtomicI64,
    /// Steps of the clock that decides.
    steps: AtomicU64,
    /// A time that was no later than the right one, and when that was known by the monotonic clock: see [`for_retention`].
    trusted: AtomicI64,
    trusted_at: AtomicI64,
    /// Changes with every step.
    changes: watch::Sender<u64>,
}

/// The time that decides, in whole microseconds.
pub fn now() -> DateTime<Utc> {
    let clock = &*CLOCK;
    let elapsed = clock.elapsed();
    time(clock.decides(wall(), elapsed))
}

/// The time by which retention deletes: not far beyond what is known to be right. After a start or a step of the clock it
/// begins a day after the newest stored change, and catches up a day in an hour, so that a clock that is a year ahead
/// deletes little before somebody has mended it.
pub fn for_retention() -> DateTime<Utc> {
    let clock = &*CLOCK;
    let trusted = clock.trusted.load(Ordering::Relaxed);
    if trusted == NONE {
        return now();
    }
    let passed = clock.elapsed() - clock.trusted_at.load(Ordering::Relaxed);
    let bound = time(trusted.saturating_add(passed.saturating_mul(CATCH_UP))) + HEAD_START;
    now().min(bound)
}

/// Time by which the clock of this process is ahead of that of the database. `None` on SQLite, where they are the same, and
/// before it was measured.
pub fn skew() -> Option<TimeDelta> {
    let skew = CLOCK.skew.load(Ordering::Relaxed);
    (skew != NONE).then(|| TimeDelta::microseconds(skew))
}

/// Number of times the clock that decides was stepped by a second or more.
pub fn steps() -> u64 {
    CLOCK.steps.load(Ordering::Relaxed)
}

/// Changes with every step of the clock that decides.
pub(crate) fn changes() -> watch::Receiver<u64> {
    CLOCK.changes.subscribe()
}

/// Says that this time has passed: that of the newest stored change.
pub(crate) fn trust(stored: DateTime<Utc>) {
    let clock = &*CLOCK;
    let stored = stored.min(now()).timestamp_micros();
    // Several servers in one process share the clock.
    if stored > clock.trusted.fetch_max(stored, Ordering::Relaxed) {
        clock.trusted_at.store(clock.elapsed(), Ordering::Relaxed);
    }
}

/// Asks the database for a sign of life, and compares its clock.
pub(crate) async fn compare(db: &Db) -> Result<()> {
    if db.backend() != DbBackend::Postgres {
        db.ping().await?;
        let (wall, elapsed) = CLOCK.sample();
        CLOCK.compared(wall, elapsed, None);
        return Ok(());
    }
    let sql = Statement::from_string(DbBackend::Postgres, "SELECT clock_timestamp() AS now");
    let (wall, begun) = CLOCK.sample();
    let row = timeout(WITHIN, db.reader().query_one_raw(sql)).await;
    let Ok(row) = row else {
        return Err(db.unanswered().await);
    };
    let row = row?;
    let row = row.ok_or_else(|| Error::internal("a query without a row"))?;
    let there: DateTime<Utc> = row.try_get("", "now")?;
    // The database was asked halfway, by the monotonic clock: the other one may have been stepped meanwhile.
    let took = CLOCK.elapsed() - begun;
    let half = took / 2;
    let there = (there.timestamp_micros(), NOISE_US.max(took));
    CLOCK.compared(wall + half, begun + half, Some(there));
    Ok(())
}

impl Clock {
    fn elapsed(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    /// The wall clock and the monotonic one at the same moment.
    fn sample(&self) -> (i64, i64) {
        let mut sample = (wall(), self.elapsed());
        for _ in 0..10 {
            let before = self.elapsed();
            let wall = wall();
            let took = self.elapsed() - before;
            sample = (wall, before + took / 2);
            // Else the thread was not running in between.
            if took < NOISE_US {
                break;
            }
        }
        sample
    }

    /// The time that decides when the clocks show this.
    fn decides(&self, wall: i64, elapsed: i64) -> i64 {
        let expected = self.base.load(Ordering::Relaxed) + elapsed;
        let told = wall + self.offset.load(Ordering::Relaxed);
        // Else the wall clock was stepped since the last comparison.
        let is_steady = (told - expected).abs() < STEP_US;
        if is_steady { told } else { expected }
    }

    /// Takes over what a comparison has found: both clocks of this process, and that of the database with the error of its
    /// measurement.
    fn compared(&self, wall: i64, elapsed: i64, there: Option<(i64, i64)>) {
        let expected = self.decides(wall, elapsed);
        let is_first = there.is_some() && self.skew.load(Ordering::Relaxed) == NONE;
        let (right, noise) = there.unwrap_or((wall, 0));
        self.base.store(right - elapsed, Ordering::Relaxed);
        if there.is_some() {
            let ahead = right - wall;
            if (ahead - self.offset.load(Ordering::Relaxed)).abs() > noise {
                self.offset.store(ahead, Ordering::Relaxed);
            }
            self.skew.store(-ahead, Ordering::Relaxed);
        }
        let step = right - expected;
        // At first the clock of this process decided nothing.
        if is_first || step.abs() - noise < STEP_US {
            return;
        }
        if step > 0 {
            // What was right before the step has passed.
            self.trusted.store(expected, Ordering::Relaxed);
            self.trusted_at.store(self.elapsed(), Ordering::Relaxed);
        }
        let count = self.steps.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::warn!(
            seconds = TimeDelta::microseconds(step).as_seconds_f64(),
            "the clock by which the server decides was stepped"
        );
        self.changes.send_replace(count);
    }
}

/// The wall clock of the host.
fn wall() -> i64 {
    Utc::now().timestamp_micros()
}

fn time(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}
