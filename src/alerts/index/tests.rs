//! That the index finds what the slow form finds, and nothing else.

use std::cell::OnceCell;

use chrono::{DateTime, TimeDelta};

use super::*;
use crate::{
    alerts::engine::{self, Verdict},
    entity::{
        Strings,
        alert::AlertSeverity,
        alert_rule::{self, Weekday},
        camera_zone::{self, ZoneAnchor, ZoneShape, ZoneType},
    },
    zones::{Place, Unplaced},
};

const CAMERAS: [&str; 3] = ["door", "gate", "yard"];
const TYPES: [&str; 5] = ["Person", "dog", "CAT", "ÄRA", "car"];
const ZONES: [&str; 4] = ["UTC", "Europe/Berlin", "Asia/Kathmandu", "Pacific/Apia"];

/// Some of these, in any order, some of them twice.
fn some(random: &mut fastrand::Rng, of: &[String]) -> Option<Strings> {
    if of.is_empty() || random.bool() {
        return None;
    }
    let number = random.usize(0..4);
    let any = |_| of[random.usize(..of.len())].clone();
    Some(Strings((0..number).map(any).collect()))
}

fn maybe<T>(random: &mut fastrand::Rng, value: impl FnOnce(&mut fastrand::Rng) -> T) -> Option<T> {
    random.bool().then(|| value(random))
}

fn schedule(random: &mut fastrand::Rng) -> alert_rule::Schedule {
    let days = [Weekday::Monday, Weekday::Wednesday, Weekday::Sunday];
    let (start, end) = (random.u32(0..24), random.u32(0..24));
    let window = start != end && random.bool();
    alert_rule::Schedule {
        days: days.into_iter().filter(|_| random.bool()).collect(),
        start_time: window.then(|| format!("{start:02}:00")),
        end_time: window.then(|| format!("{end:02}:00")),
        timezone: ZONES[random.usize(..ZONES.len())].into(),
    }
}

/// A rule with few conditions or many. Types beyond 64 share their bits.
fn rule(random: &mut fastrand::Rng, types: &[String], zone_ids: &[String]) -> Rule {
    let now = crate::entity::now();
    let cameras = CAMERAS.map(Into::into);
    let rare = random.bool();
    let row = alert_rule::Model {
        id: uuid::Uuid::now_v7(),
        name: "r".into(),
        description: None,
        enabled: true,
        severity: AlertSeverity::Medium,
        risk_threshold: maybe(random, |random| random.i32(0..=100)).filter(|_| rare),
        object_types: some(random, types),
        camera_ids: some(random, &cameras),
        zone_ids: some(random, zone_ids),
        min_confidence: maybe(random, |random| f64::from(random.i32(0..=10)) / 10.0),
        schedule: maybe(random, schedule).filter(|_| rare),
        conditions: None,
        dedup_key_template: "{camera_id}".into(),
        cooldown_seconds: 0,
        channels: None,
        created_at: now,
        updated_at: now,
        version_id: 1,
        flap_threshold: None,
        flap_window_seconds: None,
    };
    Rule::compile(row).unwrap()
}

fn zones(random: &mut fastrand::Rng) -> Vec<camera_zone::Model> {
    let now = crate::entity::now();
    let corner = |random: &mut fastrand::Rng| f64::from(random.i32(0..=10)) / 10.0;
    let number = random.usize(0..8);
    let zone = |at| camera_zone::Model {
        id: format!("z{at}"),
        camera_id: CAMERAS[random.usize(..CAMERAS.len())].into(),
        name: format!("z{at}"),
        zone_type: ZoneType::Other,
        coordinates: {
            let (x, y) = (corner(random), corner(random));
            let corners = [[x, y], [x + 0.6, y], [x + 0.5, y + 0.4], [x, y + 0.5]];
            serde_json::json!(corners)
        },
        shape: ZoneShape::Polygon,
        color: "#3B82F6".into(),
        enabled: true,
        priority: random.i32(0..3),
        created_at: now,
        updated_at: now,
        anchor: [ZoneAnchor::Center, ZoneAnchor::Foot, ZoneAnchor::Overlap][random.usize(..3)],
        min_overlap: None,
        version_id: 1,
    };
    (0..number).map(zone).collect()
}

fn seen(random: &mut fastrand::Rng, types: &[String]) -> Seen {
    let pixel = |random: &mut fastrand::Rng| Some(random.i32(-20..100));
    let place = if random.u8(..8) == 0 {
        Err(Unplaced::NoSize)
    } else {
        let bbox = [pixel(random), pixel(random), Some(20), Some(20)];
        Place::new(bbox, [Some(100), Some(100)])
    };
    let name = |random: &mut fastrand::Rng| match random.u8(..8) {
        0 => "unheard of".to_string(),
        _ => types[random.usize(..types.len())].to_lowercase(),
    };
    Seen {
        object_type: maybe(random, name),
        confidence: maybe(random, |random| f64::from(random.i32(0..=10)) / 10.0),
        place,
        hits: OnceCell::new(),
    }
}

/// The same twice, as facts remember what was asked of them.
fn facts(
    random: &mut fastrand::Rng,
    types: &[String],
    zones: &Arc<ZoneSet>,
    first: DateTime<chrono::Utc>,
) -> [Facts; 2] {
    let seed = random.u64(..);
    [(), ()].map(|()| {
        let random = &mut fastrand::Rng::with_seed(seed);
        Facts {
            camera_id: ["door", "gate", "yard", "roof"][random.usize(..4)].into(),
            risk_score: maybe(random, |random| random.i32(0..=100)),
            started_at: first + TimeDelta::minutes(random.i64(0..20_160)),
            detections: {
                let number = random.usize(0..5);
                (0..number).map(|_| seen(random, types)).collect()
            },
            zones: zones.clone(),
            types: OnceCell::new(),
        }
    })
}

#[test]
fn the_index_finds_what_the_slow_form_finds() {
    let seed = fastrand::u64(..);
    let random = &mut fastrand::Rng::with_seed(seed);
    let first = "2026-03-20T00:00:00Z".parse().unwrap();
    let (mut matched, mut in_zones) = (0, 0);
    for round in 0..400 {
        let mut types: Vec<String> = TYPES.map(Into::into).to_vec();
        if round % 4 == 0 {
            types.extend((0..100).map(|n| format!("t{n}")));
        }
        // Some rules name zones that are not there.
        let zone_ids: Vec<_> = (0..8).map(|at| format!("z{at}")).collect();
        let zones = Arc::new(ZoneSet::compile(zones(random)));
        let number = random.usize(0..40);
        let rules = (0..number).map(|_| rule(random, &types, &zone_ids));
        let index = Index::new(Arc::new(rules.collect()), zones.clone());
        for _ in 0..50 {
            let [fast, slow] = facts(random, &types, &zones, first);
            let rules = index.rules().iter().enumerate();
            let expected: Vec<_> = rules
                .filter_map(|(at, rule)| match engine::judge(rule, &slow) {
                    Verdict::Stopped(..) => None,
                    Verdict::Matches {
                        object_type,
                        zone_id,
                    } => Some(Match {
                        rule: at,
                        object_type,
                        zone_id,
                    }),
                })
                .collect();
            let found = index.matches(&fast);
            assert_eq!(found, expected, "seed {seed}, round {round}: {fast:?}");
            matched += found.len();
            let with_zone = found.iter().filter(|found| found.zone_id.is_some());
            in_zones += with_zone.count();
        }
    }
    // Twenty thousand events in which nothing matches would prove nothing.
    assert!(matched > 10_000 && in_zones > 500, "{matched} {in_zones}");
}
