//! That the index finds what the slow form finds, and nothing else.

use uuid::Uuid;

use super::*;
use crate::{
    alerts::engine::{
        judge::{self, Verdict},
        random::Random,
    },
    entity::alert_rule,
};

#[test]
fn the_index_finds_what_the_slow_form_finds() {
    let seed = fastrand::u64(..);
    let mut random = Random::new(seed);
    let (mut matched, mut in_zones) = (0, 0);
    let mut last = Index::default();
    for round in 0..400 {
        if round == 300 {
            // Some share their bits.
            random.add_types(100);
        }
        let zones = random.zones();
        let number = random.number(40);
        let row = |random: &mut Random| alert_rule::Model {
            id: Uuid::now_v7(),
            ..random.rule()
        };
        let rows: Vec<_> = (0..number).map(|_| row(&mut random)).collect();
        let rules = RuleSet::compile(rows);
        // One of the last round, with some changes, must be as good as a new one.
        let index = if round % 2 == 0 {
            Index::new(Arc::new(rules), zones.clone())
        } else {
            changed(&mut random, &last, &zones)
        };
        for _ in 0..50 {
            let [fast, slow] = random.facts(&zones);
            let expected: Vec<_> = index
                .rules()
                .iter()
                .filter_map(|(at, rule)| match judge::judge(rule, &slow) {
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
        last = index;
    }
    // Twenty thousand events in which nothing matches would prove nothing.
    assert!(matched > 10_000 && in_zones > 500, "{matched} {in_zones}");
}

/// An index after some rules were added, changed, disabled, enabled and deleted, and zones changed with them or not.
fn changed(random: &mut Random, last: &Index, zones: &Arc<ZoneSet>) -> Index {
    let mut rules = last.rules().clone();
    let mut index = last.clone();
    for step in 0..random.number(6) {
        let known: Vec<_> = rules.iter().map(|(_, rule)| rule.id).collect();
        let at = random.number(known.len() + 1);
        let mut row = random.rule();
        row.created_at += chrono::TimeDelta::seconds(i64::try_from(step).unwrap() - 2);
        row.id = known.get(at).copied().unwrap_or_else(Uuid::now_v7);
        row.enabled = random.number(4) > 0;
        let id = row.id;
        let rows = if random.number(5) > 0 {
            vec![row]
        } else {
            Vec::new()
        };
        rules = Arc::new(rules.with(&[id], rows));
        let zones = if random.number(2) == 0 {
            zones
        } else {
            last.zones()
        };
        index = index.next(rules.clone(), zones.clone());
    }
    index.next(rules, zones.clone())
}
