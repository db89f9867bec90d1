//! Sets next ticks anew when the rules of time zones or the clock have changed.

use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use uuid::Uuid;

use super::{
    cron::Ticks,
    ticker::{SCHEDULES, Ticker},
};
use crate::{
    clock,
    entity::job_schedule::{Column, Entity, Model},
    error::Result,
};

impl Ticker {
    /// Sets the next tick of schedules anew: their time zones may have other rules than when it was set, and the clock
    /// may have been ahead.
    pub(super) async fn revise(&self) -> Result<()> {
        let mut last = Uuid::nil();
        loop {
            let schedules = Entity::find()
                .filter(Column::Enabled.eq(true))
                .filter(Column::Id.gt(last))
                .order_by_asc(Column::Id)
                .limit(SCHEDULES)
                .all(self.db.reader())
                .await?;
            let Some(page_end) = schedules.last() else {
                return Ok(());
            };
            last = page_end.id;
            let now = clock::now();
            for schedule in schedules {
                let Some(next) = revised(&schedule, now) else {
                    continue;
                };
                let revision = Entity::update_many()
                    .col_expr(Column::NextTickAt, next.into())
                    .filter(Column::Id.eq(schedule.id))
                    // Nobody else has set it since.
                    .filter(Column::NextTickAt.eq(schedule.next_tick_at));
                self.db
                    .write(async |tx| Ok(revision.clone().exec(tx).await?))
                    .await?;
            }
        }
    }
}

/// The next tick of a schedule by the rules of today, if that is another one than the row says. Ticks that are due are
/// left alone: they are judged when their jobs are made.
fn revised(schedule: &Model, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if schedule.next_tick_at <= now {
        return None;
    }
    let ticks = Ticks::parse("", &schedule.cron, &schedule.time_zone, now).ok()?;
    // A clock that was ahead may have made jobs of ticks that are still to come. Those are not made again.
    let next = ticks.after(now)?;
    (next != schedule.next_tick_at).then_some(next)
}
