//! Validation and update of a silence.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ActiveEnum, ActiveValue::Set};

use super::live::effective_start;
use crate::{
    entity::{
        Strings,
        alert::AlertSeverity,
        silence::{self, ActiveModel},
    },
    error::{Error, Result},
    pb::{self, SilenceStatus},
    rpc::{check, enums::FromProto, mask::UpdateMask, time},
};

/// Fields that `UpdateSilence` may change.
pub(super) const UPDATABLE: [&str; 7] =
    ["camera_ids", "rule_ids", "severities", "match_all", "starts_at", "ends_at", "reason"];

/// Largest number of cameras in a silence.
const MAX_CAMERAS: usize = 1_000;

/// Largest duration of a silence.
const MAX_DURATION: TimeDelta = TimeDelta::days(365);

impl pb::Silence {
    /// Returns the silence with the fields of `changes` that `mask` covers.
    pub(super) fn with(mut self, changes: Self, mask: &UpdateMask) -> Self {
        macro_rules! change {
            ($field:ident, $is_set:expr) => {
                if mask.covers(stringify!($field), $is_set(&changes.$field)) {
                    self.$field = changes.$field;
                }
            };
        }
        change!(camera_ids, |values: &Vec<_>| !values.is_empty());
        change!(rule_ids, |values: &Vec<_>| !values.is_empty());
        change!(severities, |values: &Vec<_>| !values.is_empty());
        change!(match_all, |match_all: &bool| *match_all);
        change!(starts_at, Option::is_some);
        change!(ends_at, Option::is_some);
        change!(reason, |reason: &String| !reason.is_empty());
        self
    }

    /// Validates the silence and returns the columns under the client's control. Absent fields get
    /// defaults.
    pub(super) fn checked(&self, before: Option<&silence::Model>, now: DateTime<Utc>) -> Result<ActiveModel> {
        let camera_ids = check::texts("silence.camera_ids", &self.camera_ids, MAX_CAMERAS, &(1..=64))?;
        let rule_ids: Vec<_> =
            check::uuids("silence.rule_ids", &self.rule_ids)?.iter().map(ToString::to_string).collect();
        let severities: Vec<_> = AlertSeverity::all_from_proto("silence.severities", &self.severities)?
            .iter()
            .map(ActiveEnum::to_value)
            .collect();
        let matches_any = camera_ids.is_empty() && rule_ids.is_empty() && severities.is_empty();
        if matches_any != self.match_all {
            let problem = if matches_any {
                "is required to silence all alerts"
            } else {
                "must not be set with cameras, rules or severities"
            };
            return Err(Error::invalid("silence.match_all", problem));
        }
        let (starts_at, ends_at) = self.checked_times(before, now)?;
        let strings = |values: Vec<_>| Some(Strings(values)).filter(|values| !values.0.is_empty());
        Ok(ActiveModel {
            camera_ids: Set(strings(camera_ids)),
            rule_ids: Set(strings(rule_ids)),
            severities: Set(strings(severities)),
            match_all: Set(self.match_all),
            starts_at: Set(starts_at),
            ends_at: Set(ends_at),
            created_by: Set(check::name("silence.created_by", &self.created_by, 1..=100)?),
            reason: Set(check::name("silence.reason", &self.reason, 1..=1_000)?),
            ..Default::default()
        })
    }

    /// Validates start and end.
    fn checked_times(
        &self,
        before: Option<&silence::Model>,
        now: DateTime<Utc>,
    ) -> Result<(DateTime<Utc>, DateTime<Utc>)> {
        let parse_time = |field: &str, time| time::from_proto(&format!("silence.{field}"), time);
        let requested_start = self.starts_at.map(|time| parse_time("starts_at", time)).transpose()?.unwrap_or(now);
        let starts_at = match before {
            Some(before) if before.starts_at <= now => {
                if self.starts_at.is_some() && requested_start != before.starts_at {
                    let problem = "cannot be changed once the silence has begun";
                    return Err(Error::invalid("silence.starts_at", problem));
                }
                before.starts_at
            }
            Some(_) | None => requested_start.max(now),
        };
        let requested_end = self.ends_at.ok_or_else(|| Error::invalid("silence.ends_at", "is required"))?;
        let ends_at = parse_time("ends_at", requested_end)?;
        let problem = if ends_at <= starts_at {
            "must be after starts_at and the server's time"
        } else if ends_at <= now {
            "must not be in the past; to end the silence, expire it"
        } else if ends_at - starts_at > MAX_DURATION {
            "must be at most 365 days after starts_at"
        } else {
            return Ok((starts_at, ends_at));
        };
        Err(Error::invalid("silence.ends_at", problem))
    }
}

/// Returns the status of a silence at a time.
pub(super) fn status(row: &silence::Model, at: DateTime<Utc>) -> SilenceStatus {
    if at >= row.ends_at {
        SilenceStatus::Expired
    } else if at < effective_start(row) {
        SilenceStatus::Pending
    } else {
        SilenceStatus::Active
    }
}
