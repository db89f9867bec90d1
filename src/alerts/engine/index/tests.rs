//! Compares the index with the direct evaluation of every rule on random data.

use uuid::Uuid;

use super::*;
use crate::{
    alerts::engine::{
        evaluate::{self, Verdict},
        random::Random,
    },
    entity::alert_rule,
};

#[test]
fn the_index_finds_what_the_slow_form_finds() {
    let seed = fastrand::u64(..);
    let mut random = Random::new(seed);
    let (mut matched, mut in_zones) = (0, 0);
    let mut previous = Index::default();
    for round in 0..400 {
        if round == 300 {
            // More than 64 types, so that some types share a Bloom bit.
            random.add_types(100);
        }
        let zones = random.zones();
        let number = random.number(40);
        let row = |random: &mut Random| alert_rule::Model { id: Uuid::now_v7(), ..random.rule() };
        let rows: Vec<_> = (0..number).map(|_| row(&mut random)).collect();
        let rules = RuleSet::compile(rows);
        // An index that is updated incrementally must equal a new index.
        let index = if round % 2 == 0 {
            Index::new(Arc::new(rules), zones.clone())
        } else {
            changed(&mut random, &previous, &zones)
        };
        for _ in 0..50 {
            let [fast, slow] = random.facts(&zones);
            let expected: Vec<_> = index
                .rules()
                .iter()
                .filter_map(|(slot, rule)| match evaluate::evaluate(rule, &slow) {
                    Verdict::Stopped(..) => None,
                    Verdict::Matches { object_type, zone_id } => Some(Match { rule: slot, object_type, zone_id }),
                })
                .collect();
            let matches = index.matches(&fast);
            assert_eq!(matches, expected, "seed {seed}, round {round}: {fast:?}");
            matched += matches.len();
            let matches_with_zone = matches.iter().filter(|rule_match| rule_match.zone_id.is_some());
            in_zones += matches_with_zone.count();
        }
        previous = index;
    }
    // A run with almost no matches would prove nothing.
    assert!(matched > 10_000 && in_zones > 500, "{matched} {in_zones}");
}

/// Applies random rule changes to an index: additions, updates, disabling, enabling and deletions,
/// with and without zone changes.
fn changed(random: &mut Random, previous: &Index, zones: &Arc<ZoneSet>) -> Index {
    let mut rules = previous.rules().clone();
    let mut index = previous.clone();
    for step in 0..random.number(6) {
        let known: Vec<_> = rules.iter().map(|(_, rule)| rule.id).collect();
        let position = random.number(known.len() + 1);
        let mut row = random.rule();
        row.created_at += chrono::TimeDelta::seconds(i64::try_from(step).unwrap() - 2);
        row.id = known.get(position).copied().unwrap_or_else(Uuid::now_v7);
        row.enabled = random.number(4) > 0;
        let id = row.id;
        let rows = if random.number(5) > 0 { vec![row] } else { Vec::new() };
        rules = Arc::new(rules.with(&[id], rows));
        let zones = if random.number(2) == 0 { zones } else { previous.zones() };
        index = index.next(rules.clone(), zones.clone());
    }
    index.next(rules, zones.clone())
}
