//! Creates the jobs of schedules: one job per tick, however many processes run.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveModelTrait,
    ActiveValue::Set,
    ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{LockBehavior, LockType},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{cron::Ticks, new_job::new_job};
use crate::{
    clock,
    db::Db,
    entity::{
        job,
        job_schedule::{ActiveModel, Column, Entity, MissedPolicy, Model},
    },
    error::Result,
    feed::{FeedUpdate, Follower, Position},
    jobs::{
        store::create::{self, CreateOutcome},
        types::{LiveTypes, Types},
        wakeups::Wakeups,
    },
    log::retry,
    monitor::{Announcement, Feed},
    pb::{Topic, watch_response::Update},
    time_zones,
};

/// Delay after which a tick counts as missed.
const MISS_DELAY: TimeDelta = TimeDelta::seconds(60);

/// Maximum number of jobs of missed ticks created by one transaction.
const MAX_JOBS_PER_TRANSACTION: usize = 1_000;

/// Maximum number of missed ticks counted by one transaction.
const MAX_TICKS_PER_TRANSACTION: usize = 10_000;

/// Maximum number of schedules per query.
pub(super) const SCHEDULES_PER_QUERY: u64 = 500;

/// Longest interval between two queries for due schedules.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Delay before a schedule locked by another process is tried again.
const LOCKED_RETRY_DELAY: Duration = Duration::from_millis(25);

/// Delay after a failure.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Delay before an invalid schedule is tried again.
const INVALID_RETRY_DELAY: TimeDelta = TimeDelta::minutes(1);

/// Creates the jobs of due schedules.
#[derive(Clone)]
pub(in crate::jobs) struct Ticker {
    pub(super) db: Db,
    /// Defaults of the created jobs.
    types: LiveTypes,
    /// Notified of created jobs.
    wakeups: Wakeups,
}

/// Progress on the due ticks of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TickProgress {
    /// No due tick is left.
    Done,
    /// Due ticks are left for the next transaction.
    Partial,
    /// Another process has locked the schedule.
    Locked,
}

impl Ticker {
    /// Creates the ticker of a database.
    pub(in crate::jobs) fn new(db: Db, types: LiveTypes, wakeups: Wakeups) -> Self {
        Self { db, types, wakeups }
    }

    /// Creates jobs until shutdown. Changes of schedules are read from the feed, from a position on.
    pub(in crate::jobs) async fn run(self, feed: Feed, from: Position, shutdown: CancellationToken) {
        let mut follower = Follower::new(feed, from);
        let mut rules = time_zones::changes();
        // Rules may have changed while no process was running.
        rules.mark_changed();
        let mut steps = clock::changes();
        let ticking = async {
            loop {
                if rules.has_changed().unwrap_or(false) || steps.has_changed().unwrap_or(false) {
                    match self.revise().await {
                        Ok(()) => {
                            rules.mark_unchanged();
                            steps.mark_unchanged();
                        }
                        Err(error) => {
                            retry::retrying(&error, "failed to revise schedules; retrying");
                        }
                    }
                }
                let pause = self.tick().await.unwrap_or_else(|error| {
                    retry::retrying(&error, "failed to read due schedules; retrying");
                    RETRY_DELAY
                });
                let waking = async {
                    tokio::select! {
                        () = schedule_changed(&mut follower) => {}
                        _ = rules.changed() => rules.mark_changed(),
                        _ = steps.changed() => steps.mark_changed(),
                    }
                };
                let _ = timeout(pause, waking).await;
            }
        };
        shutdown.run_until_cancelled(ticking).await;
    }

    /// Creates the due jobs. Returns the delay before the next query, unless a schedule changes earlier.
    async fn tick(&self) -> Result<Duration> {
        let due: Vec<Uuid> = Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(Column::Enabled.eq(true))
            .filter(Column::NextTickAt.lte(clock::now()))
            .order_by_asc(Column::NextTickAt)
            .order_by_asc(Column::Id)
            .limit(SCHEDULES_PER_QUERY)
            .into_tuple()
            .all(self.db.reader())
            .await?;
        let (mut pause, mut is_more) = (MAX_PAUSE, due.len() as u64 == SCHEDULES_PER_QUERY);
        for id in due {
            match self.run_schedule(id).await {
                Ok(TickProgress::Done) => {}
                Ok(TickProgress::Partial) => is_more = true,
                Ok(TickProgress::Locked) => pause = pause.min(LOCKED_RETRY_DELAY),
                // A failing schedule must not block others.
                Err(error) => {
                    tracing::debug!(job_schedule.id = %id, %error, "failed to create the jobs of a schedule; retrying");
                    pause = pause.min(RETRY_DELAY);
                }
            }
        }
        if pause < MAX_PAUSE {
            return Ok(pause);
        }
        if is_more {
            return Ok(Duration::ZERO);
        }
        let next: Option<DateTime<Utc>> = Entity::find()
            .select_only()
            .column(Column::NextTickAt)
            .filter(Column::Enabled.eq(true))
            .order_by_asc(Column::NextTickAt)
            .limit(1)
            .into_tuple()
            .one(self.db.reader())
            .await?;
        let until = |next: DateTime<Utc>| (next - clock::now()).to_std().unwrap_or_default();
        Ok(next.map_or(MAX_PAUSE, until).min(MAX_PAUSE))
    }

    /// Creates the jobs of the due ticks of a schedule, and notifies the dispatcher.
    async fn run_schedule(&self, id: Uuid) -> Result<TickProgress> {
        let types = self.types.current();
        let creation = self.db.write(async |tx| create_due_jobs(tx, id, &types, clock::now()).await);
        let (progress, outcomes) = creation.await?;
        let created = outcomes.iter().filter_map(CreateOutcome::created_job);
        self.wakeups.notify_queued(created);
        Ok(progress)
    }
}

/// Waits until a schedule has changed, or may have changed. Cancel safe.
async fn schedule_changed(follower: &mut Follower<Announcement>) {
    loop {
        let FeedUpdate::Changes(entries) = follower.next().await else {
            return;
        };
        let is_schedule = |change: &Announcement| {
            matches!(change.update, Some(Update::JobSchedule(_))) || change.is_unreadable(Topic::JobSchedules)
        };
        if entries.iter().any(|entry| is_schedule(&entry.item)) {
            return;
        }
    }
}

/// Creates the jobs of the due ticks of a schedule. Returns the outcome of each job.
async fn create_due_jobs(
    tx: &DatabaseTransaction,
    id: Uuid,
    types: &Types,
    now: DateTime<Utc>,
) -> Result<(TickProgress, Vec<CreateOutcome>)> {
    let schedule = Entity::find_by_id(id)
        .filter(Column::Enabled.eq(true))
        .filter(Column::NextTickAt.lte(now))
        .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked)
        .one(tx)
        .await?;
    let Some(schedule) = schedule else {
        return Ok((TickProgress::Locked, Vec::new()));
    };
    let ticks = match Ticks::parse("", &schedule.cron, &schedule.time_zone, now) {
        Ok(ticks) => ticks,
        // Written without validation by another client of the database.
        Err(error) => {
            tracing::error!(job_schedule.id = %id, %error, "invalid job schedule; correct its `cron` or `time_zone`");
            let postponed = ActiveModel {
                id: Set(id),
                next_tick_at: Set(now + INVALID_RETRY_DELAY),
                ..<ActiveModel as ActiveModelTrait>::default()
            };
            postponed.update(tx).await?;
            return Ok((TickProgress::Done, Vec::new()));
        }
    };
    let mut due = DueTicks::at(&schedule, &ticks, now);
    let tick_count = due.len();
    let Some(next) = due.next else {
        return Ok((TickProgress::Done, Vec::new()));
    };
    if schedule.skip_if_active {
        let is_active = !due.ticks.is_empty() && is_active(tx, id).await?;
        due.ticks.truncate(usize::from(!is_active));
    }
    let last = due.ticks.last().copied();
    let skipped = tick_count - due.ticks.len();
    let due_ticks = due.ticks.into_iter();
    let jobs = due_ticks.map(|tick| new_job(&schedule, Some(tick), types, now));
    let outcomes = create::insert(tx, jobs.collect()).await?;
    let mut changed =
        ActiveModel { id: Set(id), next_tick_at: Set(next), ..<ActiveModel as ActiveModelTrait>::default() };
    if let (Some(tick), Some(outcome)) = (last, outcomes.last()) {
        changed.last_tick_at = Set(Some(tick));
        changed.last_job_id = Set(Some(job_id(outcome)));
    }
    if skipped > 0 {
        let skipped = i64::try_from(skipped).unwrap_or(i64::MAX);
        changed.missed_ticks = Set(schedule.missed_ticks.saturating_add(skipped));
    }
    changed.update(tx).await?;
    let progress = if next <= now { TickProgress::Partial } else { TickProgress::Done };
    Ok((progress, outcomes))
}

fn job_id(outcome: &CreateOutcome) -> Uuid {
    match outcome {
        CreateOutcome::Created(job) => job.id,
        CreateOutcome::Existed(id) | CreateOutcome::KeyHeld { id, .. } | CreateOutcome::RequestReused(id) => *id,
    }
}

/// Returns true if a job of the schedule is queued or running.
async fn is_active(tx: &DatabaseTransaction, id: Uuid) -> Result<bool> {
    let active: Option<Uuid> = job::Entity::find()
        .select_only()
        .column(job::Column::Id)
        .filter(job::Column::ScheduleId.eq(id))
        .filter(job::Column::CompletedAt.is_null())
        .limit(1)
        .into_tuple()
        .one(tx)
        .await?;
    Ok(active.is_some())
}

/// Ticks of a schedule handled by one transaction.
#[derive(Debug, PartialEq)]
struct DueTicks {
    /// Ticks with a job, oldest first.
    ticks: Vec<DateTime<Utc>>,
    /// Number of ticks without a job.
    skipped: usize,
    /// First tick left for a later transaction.
    next: Option<DateTime<Utc>>,
}

impl DueTicks {
    fn at(schedule: &Model, ticks: &Ticks, now: DateTime<Utc>) -> Self {
        let policy = schedule.missed_policy;
        let missed_before = now - MISS_DELAY;
        let (mut missed, mut on_time) = (Vec::new(), Vec::new());
        let mut skipped = 0;
        // The stored tick may no longer be a tick, after a change of time zone rules.
        let before = schedule.next_tick_at - TimeDelta::microseconds(1);
        let mut next = ticks.after(before);
        while let Some(tick) = next.filter(|tick| *tick <= now) {
            if missed.len() + skipped >= MAX_TICKS_PER_TRANSACTION
                || (policy == MissedPolicy::RunAll && missed.len() >= MAX_JOBS_PER_TRANSACTION)
            {
                break;
            }
            if tick >= missed_before {
                on_time.push(tick);
            } else if policy == MissedPolicy::Skip {
                skipped += 1;
            } else {
                missed.push(tick);
            }
            next = ticks.after(tick);
        }
        if policy == MissedPolicy::RunOnce {
            // If more missed ticks remain, the latest missed tick is still to come.
            let is_more = next.is_some_and(|next| next < missed_before);
            let latest = if is_more { None } else { missed.pop() };
            skipped += missed.len();
            missed = latest.into_iter().collect();
        }
        missed.append(&mut on_time);
        Self { ticks: missed, skipped, next }
    }

    /// Number of handled ticks.
    fn len(&self) -> usize {
        self.ticks.len() + self.skipped
    }
}

#[cfg(test)]
mod tests;
