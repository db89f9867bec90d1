//! Which calls are made in which sample: the driver has one lock for all that use it, so that what
//! is asked too often slows down the inference.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::cost::Cost;

/// How often what was measured is compared with the budget.
const JUDGE_EVERY: Duration = Duration::from_secs(10);

/// How far apart calls are made that are too dear to be made more often.
const STRETCHES: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(30),
];

/// How often calls are made, and what they may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiers {
    /// The time between two calls for what changes slowly: temperature, power, video engines, link.
    pub warm: Duration,
    /// The same for what hardly changes: fans, BAR1, replays, limits.
    pub cold: Duration,
    /// How long all calls about one GPU and its MIG instances may take in a second.
    pub budget: Duration,
}

impl Default for Tiers {
    fn default() -> Self {
        Self {
            warm: Duration::from_secs(1),
            cold: Duration::from_secs(1),
            budget: Duration::from_millis(5),
        }
    }
}

/// How soon a value is old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    /// Blocks for long, or never changes.
    Rare,
    Cold,
    Warm,
    Hot,
}

fn tier(kind: &str) -> Tier {
    match kind {
        "utilization" | "memory" | "sm_clock" | "memory_clock" | "pstate" | "throttle_reasons"
        | "pcie_bytes" | "mig_mode" => Tier::Hot,
        "pcie_send" | "pcie_receive" | "sm_max" | "memory_max" | "temp_slowdown_threshold" => {
            Tier::Rare
        }
        "fans" | "fan_speed" | "bar1" | "replays" | "power_limit" => Tier::Cold,
        _ => Tier::Warm,
    }
}

/// The plan for one GPU or MIG instance.
#[derive(Debug)]
pub(crate) struct Plan {
    tiers: Tiers,
    /// The time between two samples.
    interval: Duration,
    kinds: BTreeMap<&'static str, Kind>,
    now: Instant,
    judged: Option<Instant>,
    /// How many share the budget: the GPU and its MIG instances.
    parts: u32,
}

/// What is known of a kind of call.
#[derive(Debug)]
struct Kind {
    tier: Tier,
    period: Duration,
    /// The sample in which it was made last.
    asked: Option<Instant>,
    /// How long it takes as a rule, in seconds. `None` before the first.
    usual: Option<f64>,
    /// What it has cost since this was last taken.
    fresh: Cost,
}

impl Plan {
    pub(crate) fn new(tiers: Tiers, interval: Duration) -> Self {
        Self {
            tiers,
            interval,
            kinds: BTreeMap::new(),
            now: Instant::now(),
            judged: None,
            parts: 1,
        }
    }

    /// Has so many share the budget.
    pub(crate) fn share(&mut self, parts: u32) {
        self.parts = parts;
    }

    /// Begins a sample. Returns the calls that are made less often from now on, and those that are
    /// made as often as before again, for people, if there are any.
    pub(crate) fn begin(&mut self, now: Instant) -> Option<String> {
        self.now = now;
        let judged = *self.judged.get_or_insert(now);
        if now.duration_since(judged) < JUDGE_EVERY {
            return None;
        }
        self.judged = Some(now);
        self.judge()
    }

    /// Whether a call is to be made in this sample.
    pub(crate) fn is_due(&mut self, kind: &'static str) -> bool {
        let (now, slack) = (self.now, self.interval / 2);
        let kind = self.kind(kind);
        kind.asked
            .is_none_or(|asked| asked == now || now + slack >= asked + kind.period)
    }

    /// Notes what a call took.
    pub(crate) fn took(&mut self, kind: &'static str, took: Duration) {
        let now = self.now;
        let kind = self.kind(kind);
        kind.asked = Some(now);
        kind.fresh.add(took);
        // A call that was held up once is not dear because of that.
        let took = took.as_secs_f64();
        let usual = kind.usual.unwrap_or(took);
        kind.usual = Some(usual + 0.1 * (took - usual));
    }

    /// What the calls have cost since this was last asked.
    pub(crate) fn take_costs(&mut self) -> Vec<(&'static str, Cost)> {
        self.kinds
            .iter_mut()
            .filter(|(_, kind)| kind.fresh.calls > 0)
            .map(|(name, kind)| (*name, std::mem::take(&mut kind.fresh)))
            .collect()
    }

    fn kind(&mut self, name: &'static str) -> &mut Kind {
        let tiers = self.tiers;
        self.kinds.entry(name).or_insert_with(|| {
            let tier = tier(name);
            Kind {
                tier,
                period: base(tiers, tier),
                asked: None,
                usual: None,
                fresh: Cost::default(),
            }
        })
    }

    /// Spreads the calls so that they fit the budget: first what hardly changes, the dearest first.
    fn judge(&mut self) -> Option<String> {
        let before: Vec<_> = self.kinds.values().map(|kind| kind.period).collect();
        for kind in self.kinds.values_mut() {
            kind.period = base(self.tiers, kind.tier);
        }
        let budget = self.tiers.budget.as_secs_f64() / f64::from(self.parts);
        for tier in [Tier::Cold, Tier::Warm, Tier::Hot] {
            for stretch in STRETCHES {
                let mut dearest: Vec<_> = self
                    .kinds
                    .iter()
                    .filter(|(_, kind)| kind.tier == tier && kind.period < stretch)
                    .map(|(name, kind)| (*name, kind.usual.unwrap_or_default()))
                    .collect();
                dearest.sort_by(|a, b| b.1.total_cmp(&a.1));
                for (name, _) in dearest {
                    if self.load() <= budget {
                        break;
                    }
                    self.kind(name).period = stretch;
                }
            }
        }
        let changed = self
            .kinds
            .iter()
            .zip(before)
            .filter(|((_, kind), before)| kind.period != *before)
            .map(|((name, kind), _)| format!("{name} every {:?}", kind.period.max(self.interval)));
        let changed: Vec<_> = changed.collect();
        (!changed.is_empty()).then(|| changed.join(", "))
    }

    /// How long the calls take in a second, in seconds.
    fn load(&self) -> f64 {
        let each = |kind: &Kind| {
            kind.usual.unwrap_or_default() / kind.period.max(self.interval).as_secs_f64()
        };
        self.kinds.values().map(each).sum()
    }
}

fn base(tiers: Tiers, tier: Tier) -> Duration {
    match tier {
        Tier::Rare => STRETCHES[2],
        Tier::Hot => Duration::ZERO,
        Tier::Warm => tiers.warm,
        Tier::Cold => tiers.cold,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Samples for a minute. Returns how often each kind was asked in the last half, and the load.
    fn a_minute(
        tiers: Tiers,
        interval: Duration,
        costs: &[(&'static str, u64)],
    ) -> (BTreeMap<&'static str, u32>, f64) {
        let mut plan = Plan::new(tiers, interval);
        let (start, mut at) = (Instant::now(), Duration::ZERO);
        let (mut asked, mut spent) = (BTreeMap::new(), Duration::ZERO);
        while at < SECOND * 60 {
            plan.begin(start + at);
            for (kind, micros) in costs {
                if plan.is_due(kind) {
                    let took = Duration::from_micros(*micros);
                    plan.took(kind, took);
                    if at >= SECOND * 30 {
                        *asked.entry(*kind).or_default() += 1;
                        spent += took;
                    }
                }
            }
            at += interval;
        }
        (asked, spent.as_secs_f64() / 30.0)
    }

    #[test]
    fn within_the_budget_everything_is_asked_every_second() {
        let costs = [("memory", 12), ("temperature", 365), ("fan_speed", 137)];
        let (asked, load) = a_minute(Tiers::default(), SECOND, &costs);
        assert_eq!(
            asked,
            [("memory", 30), ("temperature", 30), ("fan_speed", 30)].into()
        );
        assert!(load < 0.005);
    }

    #[test]
    fn at_ten_samples_a_second_only_what_changes_fast_is_in_all_of_them() {
        let costs = [("memory", 12), ("temperature", 365), ("fan_speed", 137)];
        let (asked, load) = a_minute(Tiers::default(), SECOND / 10, &costs);
        assert_eq!(
            asked,
            [("memory", 300), ("temperature", 30), ("fan_speed", 30)].into()
        );
        assert!(load < 0.005);
    }

    #[test]
    fn the_dearest_calls_are_spread_until_the_budget_is_kept() {
        let costs = [
            ("memory", 12),
            ("utilization", 3),
            ("processes", 4_500),
            ("temperature", 900),
            ("fan_speed", 2_000),
        ];
        let (asked, load) = a_minute(Tiers::default(), SECOND / 10, &costs);
        assert_eq!((asked["memory"], asked["utilization"]), (300, 300));
        assert_eq!((asked["fan_speed"], asked["temperature"]), (1, 30));
        assert_eq!(asked["processes"], 3);
        assert!(load <= 0.005, "{load}");
    }

    #[test]
    fn if_nothing_else_helps_what_changes_fast_is_asked_less_often_too() {
        let costs = [("memory", 3_000), ("temperature", 400)];
        let (asked, load) = a_minute(Tiers::default(), SECOND / 10, &costs);
        assert!(load <= 0.005 && asked["memory"] >= 29, "{asked:?} {load}");
    }

    #[test]
    fn the_instances_of_a_gpu_share_its_budget() {
        let costs = [("memory", 100), ("temperature", 400), ("fan_speed", 400)];
        let spent = |parts| {
            let mut plan = Plan::new(Tiers::default(), SECOND);
            plan.share(parts);
            let start = Instant::now();
            for second in 0..60 {
                plan.begin(start + SECOND * second);
                for (kind, micros) in costs {
                    if plan.is_due(kind) {
                        plan.took(kind, Duration::from_micros(micros));
                    }
                }
            }
            plan.load()
        };
        assert!(spent(1) > 0.000_8);
        assert!(spent(8) <= 0.005 / 8.0, "{}", spent(8));
    }

    #[test]
    fn one_call_that_was_held_up_changes_little() {
        let mut plan = Plan::new(Tiers::default(), SECOND);
        let start = Instant::now();
        for second in 0..40 {
            assert_eq!(plan.begin(start + SECOND * second), None);
            let slow = second == 5;
            plan.took("memory", Duration::from_millis(if slow { 30 } else { 0 }));
        }
        assert_eq!(plan.take_costs()[0].1.longest, Duration::from_millis(30));
        assert_eq!(plan.take_costs(), []);
    }
}
