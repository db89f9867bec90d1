//! The checks of a silence that a client sends, and what an Update makes of one.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ActiveEnum, ActiveValue::Set};

use super::live::begins;
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

/// The fields that an Update may change.
pub(super) const UPDATABLE: [&str; 7] = [
    "camera_ids",
    "rule_ids",
    "severities",
    "match_all",
    "starts_at",
    "ends_at",
    "reason",
];

/// How many cameras a silence may name.
const MOST: usize = 1_000;

/// How long a silence may be.
const LONGEST: TimeDelta = TimeDelta::days(365);

impl pb::Silence {
    /// This silence with the fields of `changes` that `mask` covers.
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

    /// Every column that a client decides, checked; absent fields get their defaults.
    pub(super) fn checked(
        &self,
        before: Option<&silence::Model>,
        now: DateTime<Utc>,
    ) -> Result<ActiveModel> {
        let camera_ids = check::texts("silence.camera_ids", &self.camera_ids, MOST, &(1..=64))?;
        let rule_ids = check::uuids("silence.rule_ids", &self.rule_ids)?;
        let rule_ids: Vec<_> = rule_ids.iter().map(ToString::to_string).collect();
        let severities = AlertSeverity::all_from_proto("silence.severities", &self.severities)?;
        let severities: Vec<_> = severities.iter().map(ActiveEnum::to_value).collect();
        let matches_any = camera_ids.is_empty() && rule_ids.is_empty() && severities.is_empty();
        if matches_any != self.match_all {
            let problem = if matches_any {
                "is required to hold back everything"
            } else {
                "must not be set with cameras, rules or severities"
            };
            return Err(Error::invalid("silence.match_all", problem));
        }
        let (starts_at, ends_at) = self.times(before, now)?;
        let strings = |values: Vec<_>| Some(Strings(values)).filter(|values| !values.0.is_empty());
        Ok(ActiveModel {
            camera_ids: Set(strings(camera_ids)),
            rule_ids: Set(strings(rule_ids)),
            severities: Set(strings(severities)),
            match_all: Set(self.match_all),
            starts_at: Set(starts_at),
            ends_at: Set(ends_at),
            created_by: Set(check::name(
                "silence.created_by",
                &self.created_by,
                1..=100,
            )?),
            reason: Set(check::name("silence.reason", &self.reason, 1..=1_000)?),
            ..Default::default()
        })
    }

    /// When it begins and when it ends.
    fn times(
        &self,
        before: Option<&silence::Model>,
        now: DateTime<Utc>,
    ) -> Result<(DateTime<Utc>, DateTime<Utc>)> {
        let read = |field: &str, time| time::from_proto(&format!("silence.{field}"), time);
        let starts_at = self.starts_at.map(|time| read("starts_at", time));
        let starts_at = starts_at.transpose()?.unwrap_or(now);
        let starts_at = match before {
            Some(before) if before.starts_at <= now => {
                if self.starts_at.is_some() && starts_at != before.starts_at {
                    let problem = "cannot be changed once the silence has begun";
                    return Err(Error::invalid("silence.starts_at", problem));
                }
                before.starts_at
            }
            Some(_) | None => starts_at.max(now),
        };
        let ends_at = self
            .ends_at
            .ok_or_else(|| Error::invalid("silence.ends_at", "is required"))?;
        let ends_at = read("ends_at", ends_at)?;
        let problem = if ends_at <= starts_at {
            "must be after starts_at and the server's time"
        } else if ends_at <= now {
            "must not be in the past; to end the silence, expire it"
        } else if ends_at - starts_at > LONGEST {
            "must be at most 365 days after starts_at"
        } else {
            return Ok((starts_at, ends_at));
        };
        Err(Error::invalid("silence.ends_at", problem))
    }
}

/// Whether a silence is in force at a time.
pub(super) fn status(row: &silence::Model, at: DateTime<Utc>) -> SilenceStatus {
    if at >= row.ends_at {
        SilenceStatus::Expired
    } else if at < begins(row) {
        SilenceStatus::Pending
    } else {
        SilenceStatus::Active
    }
}
