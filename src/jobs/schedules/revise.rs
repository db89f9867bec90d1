//! Revision of next ticks after changes of time zone rules or of the clock.

use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use uuid::Uuid;

use super::{
    cron::Ticks,
    ticker::{SCHEDULES_PER_QUERY, Ticker},
};
use crate::{
    clock,
    entity::job_schedule::{Column, Entity, Model},
    error::Result,
};

impl Ticker {
    /// Revises the next ticks of all enabled schedules. Time zones may have new rules since a tick was set, and the
    /// clock may have been ahead.
    pub(super) async fn revise(&self) -> Result<()> {
        let mut last = Uuid::nil();
        loop {
            let schedules = Entity::find()
                .filter(Column::Enabled.eq(true))
                .filter(Column::Id.gt(last))
                .order_by_asc(Column::Id)
                .limit(SCHEDULES_PER_QUERY)
                .all(self.db.reader())
                .await?;
            let Some(page_end) = schedules.last() else {
                return Ok(());
            };
            last = page_end.id;
            let now = clock::now();
            for schedule in schedules {
                let Some(next) = revised_tick(&schedule, now) else {
                    continue;
                };
                let revision = Entity::update_many()
                    .col_expr(Column::NextTickAt, next.into())
                    .filter(Column::Id.eq(schedule.id))
                    // Skipped if another process has set the tick since.
                    .filter(Column::NextTickAt.eq(schedule.next_tick_at));
                self.db.write(async |tx| Ok(revision.clone().exec(tx).await?)).await?;
            }
        }
    }
}

/// Next tick by the current rules, if different from the stored tick. Due ticks are left alone, because the creation
/// of their jobs decides about them.
fn revised_tick(schedule: &Model, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if schedule.next_tick_at <= now {
        return None;
    }
    let ticks = Ticks::parse("", &schedule.cron, &schedule.time_zone, now).ok()?;
    // A clock ahead of time may have created jobs of future ticks. Those jobs are not created again.
    let next = ticks.after(now)?;
    (next != schedule.next_tick_at).then_some(next)
}
