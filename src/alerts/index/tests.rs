//! That the index finds what the slow form finds, and nothing else.

use super::*;
use crate::alerts::{
    engine::{self, Verdict},
    random::Random,
};

#[test]
fn the_index_finds_what_the_slow_form_finds() {
    let seed = fastrand::u64(..);
    let mut random = Random::new(seed);
    let (mut matched, mut in_zones) = (0, 0);
    for round in 0..400 {
        if round == 300 {
            // Some share their bits.
            random.add_types(100);
        }
        let zones = random.zones();
        let number = random.number(40);
        let rules = (0..number).map(|_| Rule::compile(random.rule()).unwrap());
        let index = Index::new(Arc::new(rules.collect()), zones.clone());
        for _ in 0..50 {
            let [fast, slow] = random.facts(&zones);
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
