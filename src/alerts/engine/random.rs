//! Random rules, zones and events for property tests.

use std::{cell::OnceCell, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use fastrand::Rng;

use super::evaluate::{DetectionFacts, EventFacts, tests::row};
use crate::{
    entity::{
        Strings,
        alert_rule::{self, Schedule, Weekday},
        camera_zone::{self, ZoneAnchor, ZoneShape, ZoneType},
    },
    zones::{Placement, PlacementError, ZoneSet},
};

const CAMERAS: [&str; 3] = ["door", "gate", "yard"];
const TYPES: [&str; 5] = ["Person", "dog", "CAT", "ÄRA", "car"];
const TIMEZONES: [&str; 4] = ["UTC", "Europe/Berlin", "Asia/Kathmandu", "Pacific/Apia"];

/// Generator of test data, deterministic for a seed.
pub(crate) struct Random {
    chance: Rng,
    /// Object types of rules and detections.
    types: Vec<String>,
    zone_ids: Vec<String>,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            chance: Rng::with_seed(seed),
            types: TYPES.map(Into::into).into(),
            zone_ids: (0..8).map(|number| format!("z{number}")).collect(),
        }
    }

    /// Adds object types to the generator.
    pub(crate) fn add_types(&mut self, number: usize) {
        self.types.extend((0..number).map(|n| format!("t{n}")));
    }

    pub(crate) fn number(&mut self, below: usize) -> usize {
        self.chance.usize(..below)
    }

    /// Generates a set of zones for some cameras.
    pub(crate) fn zones(&mut self) -> Arc<ZoneSet> {
        let number = self.number(self.zone_ids.len());
        let zones = (0..number).map(|at| self.zone(at)).collect();
        Arc::new(ZoneSet::compile(zones))
    }

    fn zone(&mut self, at: usize) -> camera_zone::Model {
        let now = crate::entity::now();
        let random = &mut self.chance;
        let (x, y) = (tenths(random), tenths(random));
        let corners = [[x, y], [x + 0.6, y], [x + 0.5, y + 0.4], [x, y + 0.5]];
        let anchors = [ZoneAnchor::Center, ZoneAnchor::Foot, ZoneAnchor::Overlap];
        camera_zone::Model {
            id: self.zone_ids[at].clone(),
            camera_id: CAMERAS[random.usize(..CAMERAS.len())].into(),
            name: "z".into(),
            zone_type: ZoneType::Other,
            coordinates: serde_json::json!(corners),
            shape: ZoneShape::Polygon,
            color: "#3B82F6".into(),
            enabled: true,
            priority: random.i32(0..3),
            created_at: now,
            updated_at: now,
            anchor: anchors[random.usize(..anchors.len())],
            min_overlap: None,
            version_id: 1,
        }
    }

    /// Generates a rule with few or many conditions. The rule may name absent zones.
    pub(crate) fn rule(&mut self) -> alert_rule::Model {
        let rare = self.chance.bool();
        let random = &mut self.chance;
        alert_rule::Model {
            risk_threshold: maybe(random, |random| random.i32(0..=100)).filter(|_| rare),
            object_types: some_of(random, &self.types),
            camera_ids: some_of(random, &CAMERAS.map(Into::into)),
            zone_ids: some_of(random, &self.zone_ids),
            min_confidence: maybe(random, tenths),
            schedule: maybe(random, schedule).filter(|_| rare),
            ..row()
        }
    }

    /// Generates the same facts twice, because facts cache results of evaluations.
    pub(crate) fn facts(&mut self, zones: &Arc<ZoneSet>) -> [EventFacts; 2] {
        let seed = self.chance.u64(..);
        let first: DateTime<Utc> = "2026-03-20T00:00:00Z".parse().unwrap();
        [(), ()].map(|()| {
            let random = &mut Rng::with_seed(seed);
            let number = random.usize(0..5);
            EventFacts {
                camera_id: ["door", "gate", "yard", "roof"][random.usize(..4)].into(),
                risk_score: maybe(random, |random| random.i32(0..=100)),
                started_at: first + TimeDelta::minutes(random.i64(0..20_160)),
                detections: (0..number).map(|_| detection(random, &self.types)).collect(),
                zones: zones.clone(),
                types: OnceCell::new(),
            }
        })
    }
}

fn tenths(random: &mut Rng) -> f64 {
    f64::from(random.i32(0..=10)) / 10.0
}

fn maybe<T>(random: &mut Rng, value: impl FnOnce(&mut Rng) -> T) -> Option<T> {
    random.bool().then(|| value(random))
}

/// Selects values in any order, with repetitions.
fn some_of(random: &mut Rng, values: &[String]) -> Option<Strings> {
    let number = random.usize(0..4);
    let any = |random: &mut Rng| (0..number).map(|_| values[random.usize(..values.len())].clone()).collect();
    maybe(random, any).map(Strings)
}

fn schedule(random: &mut Rng) -> Schedule {
    let days = [Weekday::Monday, Weekday::Wednesday, Weekday::Sunday];
    let (start, end) = (random.u32(0..24), random.u32(0..24));
    let window = start != end && random.bool();
    Schedule {
        days: days.into_iter().filter(|_| random.bool()).collect(),
        start_time: window.then(|| format!("{start:02}:00")),
        end_time: window.then(|| format!("{end:02}:00")),
        timezone: TIMEZONES[random.usize(..TIMEZONES.len())].into(),
    }
}

fn detection(random: &mut Rng, types: &[String]) -> DetectionFacts {
    let placement = if random.u8(..8) == 0 {
        Err(PlacementError::NoSize)
    } else {
        let [x, y] = [(), ()].map(|()| Some(random.i32(-20..100)));
        Placement::new([x, y, Some(20), Some(20)], [Some(100), Some(100)])
    };
    let name = maybe(random, |random| match random.u8(..8) {
        0 => "unlisted".to_string(),
        _ => types[random.usize(..types.len())].clone(),
    });
    DetectionFacts::new(name.as_deref(), maybe(random, tenths), placement)
}
