//! Makes the jobs of schedules when they tick: one for each tick, however many processes do so.

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

use super::cron::Ticks;
use crate::{
    clock,
    db::Db,
    entity::{
        job,
        job_schedule::{ActiveModel, Column, Entity, MissedPolicy, Model},
    },
    error::Result,
    feed::{FeedUpdate, Follower, Position, Topic},
    jobs::{
        Queue,
        store::create::{self, Made},
        types::{LiveTypes, Types},
        wakeups::Bell,
    },
    monitor::{Announcement, Feed},
    pb::watch_response::Update,
    time_zones,
};

/// How late the job of a tick may be before the tick is missed.
const GRACE: TimeDelta = TimeDelta::seconds(60);

/// How many jobs of missed ticks are made in one transaction at most.
const MADE_AT_ONCE: usize = 1_000;

/// How many missed ticks are counted in one transaction at most.
const COUNTED_AT_ONCE: usize = 10_000;

/// How many schedules are looked up at a time.
pub(super) const SCHEDULES: u64 = 500;

/// How often to look for schedules that are due, if nothing says that there are some.
const LOOK: Duration = Duration::from_secs(5);

/// How long to wait for another process that is making the jobs of a tick.
const ELSEWHERE: Duration = Duration::from_millis(25);

/// How long to wait after a failure.
const RETRY: Duration = Duration::from_millis(250);

/// When a schedule is looked at again that cannot be used.
const UNUSABLE: TimeDelta = TimeDelta::minutes(1);

/// Makes the jobs of schedules.
#[derive(Clone)]
pub(in crate::jobs) struct Ticker {
    pub(super) db: Db,
    /// What their jobs are given.
    types: LiveTypes,
    /// Rung for jobs that are made.
    bell: Bell,
}

/// What became of the ticks of a schedule that were due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passed {
    /// They are dealt with.
    All,
    /// Some are dealt with.
    Some,
    /// Another process deals with them.
    Elsewhere,
}

impl Ticker {
    /// One that makes the jobs of this queue's schedules, once it runs.
    pub(in crate::jobs) fn new(queue: &Queue) -> Self {
        Self {
            db: queue.db.clone(),
            types: queue.types.clone(),
            bell: queue.bell.clone(),
        }
    }

    /// Makes jobs until shutdown; what happens to schedules is heard from this place in the feed on.
    pub(in crate::jobs) async fn run(
        self,
        feed: Feed,
        from: Position,
        shutdown: CancellationToken,
    ) {
        let mut follower = Follower::new(feed, from);
        let mut rules = time_zones::changes();
        // They may have changed while no process ran.
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
                            tracing::debug!(%error, "schedules cannot be revised; it is tried again");
                        }
                    }
                }
                let pause = self.tick().await.unwrap_or_else(|error| {
                    tracing::debug!(%error, "schedules cannot be read; it is tried again");
                    RETRY
                });
                let waking = async {
                    tokio::select! {
                        () = changed(&mut follower) => {}
                        _ = rules.changed() => rules.mark_changed(),
                        _ = steps.changed() => steps.mark_changed(),
                    }
                };
                let _ = timeout(pause, waking).await;
            }
        };
        shutdown.run_until_cancelled(ticking).await;
    }

    /// Makes the jobs that are due. Returns how long to wait, unless a schedule is changed, before looking again.
    async fn tick(&self) -> Result<Duration> {
        let due: Vec<Uuid> = Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(Column::Enabled.eq(true))
            .filter(Column::NextTickAt.lte(clock::now()))
            .order_by_asc(Column::NextTickAt)
            .order_by_asc(Column::Id)
            .limit(SCHEDULES)
            .into_tuple()
            .all(self.db.reader())
            .await?;
        let (mut pause, mut is_more) = (LOOK, due.len() as u64 == SCHEDULES);
        for id in due {
            match self.pass(id).await {
                Ok(Passed::All) => {}
                Ok(Passed::Some) => is_more = true,
                Ok(Passed::Elsewhere) => pause = pause.min(ELSEWHERE),
                // It must not keep other schedules from ticking.
                Err(error) => {
                    tracing::debug!(job_schedule.id = %id, %error, "a schedule does not tick; it is tried again");
                    pause = pause.min(RETRY);
                }
            }
        }
        if pause < LOOK {
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
        Ok(next.map_or(LOOK, until).min(LOOK))
    }

    /// Makes the jobs of a schedule whose ticks are due.
    async fn pass(&self, id: Uuid) -> Result<Passed> {
        let types = self.types.current();
        let passing = self
            .db
            .write(async |tx| pass(tx, id, &types, clock::now()).await);
        let (passed, made) = passing.await?;
        let created = made.iter().filter_map(|made| match made {
            Made::Created(job) => Some(&**job),
            Made::Existed(_) | Made::KeyHeld { .. } | Made::RequestReused(_) => None,
        });
        self.bell.queued(created);
        Ok(passed)
    }
}

/// Waits until a schedule is changed, by whatever process, or may have been. Safe to drop while waiting.
async fn changed(follower: &mut Follower<Announcement>) {
    loop {
        let FeedUpdate::Changes(entries) = follower.next().await else {
            return;
        };
        let is_schedule = |change: &Announcement| {
            matches!(change.update, Some(Update::JobSchedule(_)))
                || change.is_unreadable(Topic::JobSchedules)
        };
        if entries.iter().any(|entry| is_schedule(&entry.item)) {
            return;
        }
    }
}

/// Makes the jobs of a schedule whose ticks are due. Returns what became of each.
async fn pass(
    tx: &DatabaseTransaction,
    id: Uuid,
    types: &Types,
    now: DateTime<Utc>,
) -> Result<(Passed, Vec<Made>)> {
    let schedule = Entity::find_by_id(id)
        .filter(Column::Enabled.eq(true))
        .filter(Column::NextTickAt.lte(now))
        .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked)
        .one(tx)
        .await?;
    let Some(schedule) = schedule else {
        return Ok((Passed::Elsewhere, Vec::new()));
    };
    let ticks = match Ticks::parse("", &schedule.cron, &schedule.time_zone, now) {
        Ok(ticks) => ticks,
        // Written past our checks.
        Err(error) => {
            tracing::error!(job_schedule.id = %id, %error, "a job schedule cannot be used");
            let later = ActiveModel {
                id: Set(id),
                next_tick_at: Set(now + UNUSABLE),
                ..<ActiveModel as ActiveModelTrait>::default()
            };
            later.update(tx).await?;
            return Ok((Passed::All, Vec::new()));
        }
    };
    let mut due = Due::of(&schedule, &ticks, now);
    let ticks = due.len();
    let Some(next) = due.next else {
        return Ok((Passed::All, Vec::new()));
    };
    if schedule.skip_if_active {
        let is_active = !due.wanted.is_empty() && is_active(tx, id).await?;
        due.wanted.truncate(usize::from(!is_active));
    }
    let last = due.wanted.last().copied();
    let left_out = ticks - due.wanted.len();
    let jobs = due.wanted.into_iter();
    let jobs = jobs.map(|tick| super::job(&schedule, Some(tick), types, now));
    let made = create::insert(tx, jobs.collect()).await?;
    let mut changed = ActiveModel {
        id: Set(id),
        next_tick_at: Set(next),
        ..<ActiveModel as ActiveModelTrait>::default()
    };
    if let (Some(tick), Some(made)) = (last, made.last()) {
        changed.last_tick_at = Set(Some(tick));
        changed.last_job_id = Set(Some(id_of(made)));
    }
    if left_out > 0 {
        let left_out = i64::try_from(left_out).unwrap_or(i64::MAX);
        changed.missed_ticks = Set(schedule.missed_ticks.saturating_add(left_out));
    }
    changed.update(tx).await?;
    let passed = if next <= now {
        Passed::Some
    } else {
        Passed::All
    };
    Ok((passed, made))
}

fn id_of(made: &Made) -> Uuid {
    match made {
        Made::Created(job) => job.id,
        Made::Existed(id) | Made::KeyHeld { id, .. } | Made::RequestReused(id) => *id,
    }
}

/// Whether a job of the schedule is queued or runs.
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

/// The ticks of a schedule that are dealt with in one transaction.
#[derive(Debug, PartialEq)]
struct Due {
    /// For which jobs are made, oldest first.
    wanted: Vec<DateTime<Utc>>,
    /// How many are left out.
    left_out: usize,
    /// The first one that is not dealt with.
    next: Option<DateTime<Utc>>,
}

impl Due {
    fn of(schedule: &Model, ticks: &Ticks, now: DateTime<Utc>) -> Self {
        let policy = schedule.missed_policy;
        let missed_before = now - GRACE;
        let (mut missed, mut wanted) = (Vec::new(), Vec::new());
        let mut left_out = 0;
        // The first one may be no tick any more, where the rules of the time zone have changed.
        let before = schedule.next_tick_at - TimeDelta::microseconds(1);
        let mut next = ticks.after(before);
        while let Some(tick) = next.filter(|tick| *tick <= now) {
            if missed.len() + left_out >= COUNTED_AT_ONCE
                || (policy == MissedPolicy::RunAll && missed.len() >= MADE_AT_ONCE)
            {
                break;
            }
            if tick >= missed_before {
                wanted.push(tick);
            } else if policy == MissedPolicy::Skip {
                left_out += 1;
            } else {
                missed.push(tick);
            }
            next = ticks.after(tick);
        }
        if policy == MissedPolicy::RunOnce {
            // Where there is more that was missed, the latest of them is yet to come.
            let is_more = next.is_some_and(|next| next < missed_before);
            let latest = if is_more { None } else { missed.pop() };
            left_out += missed.len();
            missed = latest.into_iter().collect();
        }
        missed.append(&mut wanted);
        Self {
            wanted: missed,
            left_out,
            next,
        }
    }

    /// How many ticks these are.
    fn len(&self) -> usize {
        self.wanted.len() + self.left_out
    }
}

#[cfg(test)]
mod tests;
