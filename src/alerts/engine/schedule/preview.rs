//! `PreviewSchedule`.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::{Schedule, Window};
use crate::{
    entity::{self, alert_rule},
    error::Result,
    pb,
    rpc::{check, time},
    time_zones::Tz,
};

/// How far ahead is looked.
const AHEAD: TimeDelta = TimeDelta::days(400);

/// How many windows are told unless the client says otherwise, and at most.
const COUNT: i32 = 10;
const MOST: i32 = 100;

/// What is to be told of a schedule.
#[derive(Debug)]
pub struct Preview {
    from: DateTime<Utc>,
    count: usize,
}

impl Preview {
    /// Reads all of the request but whose windows are meant.
    pub fn parse(request: &pb::PreviewScheduleRequest) -> Result<Self> {
        let from = request.start_time;
        let from = from.map(|from| time::from_proto("start_time", from));
        let count = check::within("count", request.count, 0..=MOST)?;
        let count = if count == 0 { COUNT } else { count };
        Ok(Self {
            from: from.transpose()?.unwrap_or_else(entity::now),
            count: usize::try_from(count).unwrap_or_default(),
        })
    }

    /// The windows of this schedule. Without one a rule is always in force.
    pub fn of(
        &self,
        schedule: Option<&alert_rule::Schedule>,
    ) -> Result<pb::PreviewScheduleResponse> {
        let Some(schedule) = schedule else {
            let always = Window {
                start: self.from,
                end: None,
            };
            return Ok(self.response(&[always], Tz::utc()));
        };
        let schedule = Schedule::compile(schedule)?;
        let until = self.from.checked_add_signed(AHEAD);
        let until = until.unwrap_or(DateTime::<Utc>::MAX_UTC);
        let windows = schedule.windows(self.from, until, self.count);
        Ok(self.response(&windows, schedule.timezone))
    }

    fn response(&self, windows: &[Window], timezone: Tz) -> pb::PreviewScheduleResponse {
        let local = |at: DateTime<Utc>| {
            let local = at.with_timezone(&timezone);
            local.to_rfc3339_opts(SecondsFormat::AutoSi, false)
        };
        let told = windows.iter().map(|window| pb::ScheduleWindow {
            start: Some(time::to_proto(window.start)),
            end: window.end.map(time::to_proto),
            local_start: local(window.start),
            local_end: window.end.map(local).unwrap_or_default(),
        });
        let first = windows.first();
        pb::PreviewScheduleResponse {
            in_force: first.is_some_and(|first| first.start == self.from),
            windows: told.collect(),
        }
    }
}
