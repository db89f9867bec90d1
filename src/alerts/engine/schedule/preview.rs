//! `PreviewSchedule`.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::{weekly::Schedule, windows::Window};
use crate::{
    entity::{self, alert_rule},
    error::Result,
    pb,
    rpc::{check, time},
    time_zones::Tz,
};

/// Time span that is searched for windows.
const HORIZON: TimeDelta = TimeDelta::days(400);

/// Default and largest number of windows in a response.
const DEFAULT_WINDOWS: i32 = 10;
const MAX_WINDOWS: i32 = 100;

/// Validated parameters of a preview.
#[derive(Debug)]
pub struct Preview {
    from: DateTime<Utc>,
    count: usize,
}

impl Preview {
    /// Validates all of the request except for the choice of the schedule.
    pub fn parse(request: &pb::PreviewScheduleRequest) -> Result<Self> {
        let from = request.start_time.map(|start| time::from_proto("start_time", start)).transpose()?;
        let count = check::within("count", request.count, 0..=MAX_WINDOWS)?;
        let count = if count == 0 { DEFAULT_WINDOWS } else { count };
        Ok(Self { from: from.unwrap_or_else(entity::now), count: usize::try_from(count).unwrap_or_default() })
    }

    /// Computes the next windows of a schedule. Without a schedule, a rule is always in force.
    pub fn windows(&self, schedule: Option<&alert_rule::Schedule>) -> Result<pb::PreviewScheduleResponse> {
        let Some(schedule) = schedule else {
            let always = Window { start: self.from, end: None };
            return Ok(self.response(&[always], Tz::utc()));
        };
        let schedule = Schedule::compile(schedule)?;
        let until = self.from.checked_add_signed(HORIZON).unwrap_or(DateTime::<Utc>::MAX_UTC);
        let windows = schedule.windows(self.from, until, self.count);
        Ok(self.response(&windows, schedule.timezone()))
    }

    fn response(&self, windows: &[Window], timezone: Tz) -> pb::PreviewScheduleResponse {
        let local_text = |time: DateTime<Utc>| {
            let local = time.with_timezone(&timezone);
            local.to_rfc3339_opts(SecondsFormat::AutoSi, false)
        };
        let messages = windows.iter().map(|window| pb::ScheduleWindow {
            start: Some(time::to_proto(window.start)),
            end: window.end.map(time::to_proto),
            local_start: local_text(window.start),
            local_end: window.end.map(local_text).unwrap_or_default(),
        });
        let first = windows.first();
        pb::PreviewScheduleResponse {
            in_force: first.is_some_and(|first| first.start == self.from),
            windows: messages.collect(),
        }
    }
}
