//! What a rule would have done, found out in a simple way.

use std::collections::BTreeMap;

use watchpost::pb::{self, RuleStop};

use super::FIRST;
use crate::support::{
    always,
    calls::{at, seconds, strings},
};

/// An event as the oracle knows it.
#[derive(Debug, Clone)]
pub struct Past {
    pub id: i64,
    pub camera: &'static str,
    pub second: i64,
    pub score: Option<i32>,
    pub seen: Vec<(&'static str, f64)>,
}

/// A rule as the oracle knows it.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub score: Option<i32>,
    pub types: &'static [&'static str],
    pub sure: Option<f64>,
    pub camera: Option<&'static str>,
    /// Hours of UTC.
    pub hours: Option<(i64, i64)>,
    pub cooldown: i64,
    pub template: &'static str,
}

pub const ANY: Asked =
    Asked { score: None, types: &[], sure: None, camera: None, hours: None, cooldown: 0, template: "{camera_id}" };

impl Asked {
    pub fn rule(&self) -> pb::AlertRule {
        let hours = self.hours.map(|(start, end)| pb::Schedule {
            start_time: format!("{start:02}:00"),
            end_time: format!("{end:02}:00"),
            ..Default::default()
        });
        pb::AlertRule {
            risk_threshold: self.score,
            object_types: strings(self.types),
            min_confidence: self.sure,
            camera_ids: self.camera.into_iter().map(Into::into).collect(),
            schedule: hours,
            cooldown: seconds(self.cooldown),
            dedup_key_template: Some(self.template.into()),
            ..always("asked")
        }
    }

    /// The type of the detection that matches, if the event does; else what stops it.
    fn judge(&self, past: &Past) -> Result<Option<&'static str>, RuleStop> {
        if self.camera.is_some_and(|camera| camera != past.camera) {
            return Err(RuleStop::CameraIds);
        }
        if self.score.is_some_and(|least| past.score.unwrap_or(-1) < least) {
            return Err(RuleStop::RiskThreshold);
        }
        let hour = past.second / 3_600 % 24;
        if self.hours.is_some_and(|(start, end)| hour < start || hour >= end) {
            return Err(RuleStop::Schedule);
        }
        let typed = past.seen.iter().filter(|(name, _)| self.types.is_empty() || self.types.contains(name));
        let typed: Vec<_> = typed.collect();
        if typed.is_empty() && !self.types.is_empty() {
            return Err(RuleStop::ObjectTypes);
        }
        let sure = typed.iter().find(|(_, sure)| *sure >= self.sure.unwrap_or(0.0));
        match (sure, self.sure) {
            (None, Some(_)) => Err(RuleStop::MinConfidence),
            (found, _) => Ok(found.map(|(name, _)| *name)),
        }
    }

    fn key(&self, past: &Past, object_type: Option<&str>) -> String {
        self.template
            .replace("{camera_id}", past.camera)
            .replace("{object_type}", object_type.unwrap_or("unknown"))
            .replace("{event_id}", &past.id.to_string())
    }

    /// Everything that the server should send, but progress.
    pub fn expected(&self, past: &[Past]) -> (Vec<pb::AlertRuleTestMatch>, pb::AlertRuleTestTotals) {
        let mut totals = pb::AlertRuleTestTotals::default();
        let (mut matches, mut stops) = (Vec::<pb::AlertRuleTestMatch>::new(), BTreeMap::new());
        for event in past {
            totals.events += 1;
            let object_type = match self.judge(event) {
                Ok(object_type) => object_type,
                Err(stop) => {
                    *stops.entry(i32::from(stop)).or_default() += 1;
                    continue;
                }
            };
            totals.matched += 1;
            let dedup_key = self.key(event, object_type);
            let holds = |earlier: &&pb::AlertRuleTestMatch| {
                let began = earlier.started_at.unwrap().seconds - FIRST;
                earlier.would_fire && earlier.dedup_key == dedup_key && event.second - began < self.cooldown
            };
            let held_by = matches.iter().rev().find(holds).map(|earlier| earlier.event_id);
            totals.would_fire += i64::from(held_by.is_none());
            totals.suppressed += i64::from(held_by.is_some());
            matches.push(pb::AlertRuleTestMatch {
                event_id: event.id,
                camera_id: event.camera.into(),
                started_at: at(FIRST + event.second),
                risk_score: event.score,
                object_type: object_type.map(Into::into),
                zone_id: None,
                would_fire: held_by.is_none(),
                cooldown_event_id: held_by,
                dedup_key,
            });
        }
        let stops = stops.into_iter().map(|(stopped_by, events)| pb::RuleStopCount { stopped_by, events });
        totals.stops = stops.collect();
        (matches, totals)
    }
}
