//! Plan of the driver calls of each sample. The driver has one lock for all users, so frequent
//! calls slow down the inference.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::cost::Cost;

/// Time between two comparisons of the measured cost with the budget.
const REBALANCE_INTERVAL: Duration = Duration::from_secs(10);

/// Periods for calls that are too expensive for their usual period.
const STRETCHED_PERIODS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(30)];

/// Weight of the newest call in the moving average of a call's duration.
const MEAN_WEIGHT: f64 = 0.1;

/// Periods of driver calls, and their time budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiers {
    /// Period of calls for values that change slowly: temperature, power, video engines, link.
    /// Default 1 s.
    pub warm: Duration,
    /// Period of calls for values that hardly change: fans, BAR1, replays, limits. Default 1 s.
    pub cold: Duration,
    /// Time per second for all calls about one GPU and its MIG instances. Default 5 ms.
    pub budget: Duration,
}

impl Default for Tiers {
    fn default() -> Self {
        Self { warm: Duration::from_secs(1), cold: Duration::from_secs(1), budget: Duration::from_millis(5) }
    }
}

/// Tier of a value, by its rate of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    /// The call blocks for long, or the value never changes.
    Rare,
    Cold,
    Warm,
    Hot,
}

fn tier(kind: &str) -> Tier {
    match kind {
        "utilization" | "memory" | "sm_clock" | "memory_clock" | "pstate" | "throttle_reasons" | "pcie_bytes"
        | "mig_mode" => Tier::Hot,
        "pcie_send" | "pcie_receive" | "sm_max" | "memory_max" | "temp_slowdown_threshold" => Tier::Rare,
        "fans" | "fan_speed" | "bar1" | "replays" | "power_limit" => Tier::Cold,
        _ => Tier::Warm,
    }
}

/// Call plan of one GPU or MIG instance.
#[derive(Debug)]
pub(crate) struct CallPlan {
    tiers: Tiers,
    /// Time between two samples.
    interval: Duration,
    kinds: BTreeMap<&'static str, CallStats>,
    now: Instant,
    last_rebalance: Option<Instant>,
    /// Number of GPUs and MIG instances that share the budget.
    parts: u32,
}

/// Measurements and period of one kind of call.
#[derive(Debug)]
struct CallStats {
    tier: Tier,
    period: Duration,
    /// Start of the last sample that made the call.
    last_called: Option<Instant>,
    /// Moving average of the duration, in seconds. `None` before the first call.
    mean_seconds: Option<f64>,
    /// Cost since the last [`CallPlan::take_costs`].
    new_cost: Cost,
}

impl CallPlan {
    pub(crate) fn new(tiers: Tiers, interval: Duration) -> Self {
        Self { tiers, interval, kinds: BTreeMap::new(), now: Instant::now(), last_rebalance: None, parts: 1 }
    }

    /// Sets the number of GPUs and MIG instances that share the budget.
    pub(crate) fn set_parts(&mut self, parts: u32) {
        self.parts = parts;
    }

    /// Begins a sample. Returns the calls whose period changed as text, or `None` without changes.
    pub(crate) fn begin_sample(&mut self, now: Instant) -> Option<String> {
        self.now = now;
        let last_rebalance = *self.last_rebalance.get_or_insert(now);
        if now.duration_since(last_rebalance) < REBALANCE_INTERVAL {
            return None;
        }
        self.last_rebalance = Some(now);
        self.rebalance()
    }

    /// Returns true if the call is due in this sample.
    pub(crate) fn is_due(&mut self, kind: &'static str) -> bool {
        let (now, slack) = (self.now, self.interval / 2);
        let kind = self.kind(kind);
        kind.last_called.is_none_or(|last_called| last_called == now || now + slack >= last_called + kind.period)
    }

    /// Records the duration of a call.
    pub(crate) fn record(&mut self, kind: &'static str, duration: Duration) {
        let now = self.now;
        let kind = self.kind(kind);
        kind.last_called = Some(now);
        kind.new_cost.add(duration);
        // A moving average, so that one delayed call does not count as expensive.
        let seconds = duration.as_secs_f64();
        let mean = kind.mean_seconds.unwrap_or(seconds);
        kind.mean_seconds = Some(mean + MEAN_WEIGHT * (seconds - mean));
    }

    /// Cost of the calls since the last call of this function.
    pub(crate) fn take_costs(&mut self) -> Vec<(&'static str, Cost)> {
        self.kinds
            .iter_mut()
            .filter(|(_, kind)| kind.new_cost.calls > 0)
            .map(|(name, kind)| (*name, std::mem::take(&mut kind.new_cost)))
            .collect()
    }

    fn kind(&mut self, name: &'static str) -> &mut CallStats {
        let tiers = self.tiers;
        self.kinds.entry(name).or_insert_with(|| {
            let tier = tier(name);
            CallStats {
                tier,
                period: base_period(tiers, tier),
                last_called: None,
                mean_seconds: None,
                new_cost: Cost::default(),
            }
        })
    }

    /// Stretches periods until the calls fit the budget: slowly changing values first, and the most
    /// expensive calls first.
    fn rebalance(&mut self) -> Option<String> {
        let old_periods: Vec<_> = self.kinds.values().map(|kind| kind.period).collect();
        for kind in self.kinds.values_mut() {
            kind.period = base_period(self.tiers, kind.tier);
        }
        let budget = self.tiers.budget.as_secs_f64() / f64::from(self.parts);
        for tier in [Tier::Cold, Tier::Warm, Tier::Hot] {
            for stretch in STRETCHED_PERIODS {
                let mut dearest: Vec<_> = self
                    .kinds
                    .iter()
                    .filter(|(_, kind)| kind.tier == tier && kind.period < stretch)
                    .map(|(name, kind)| (*name, kind.mean_seconds.unwrap_or_default()))
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
        let changes: Vec<_> = self
            .kinds
            .iter()
            .zip(old_periods)
            .filter(|((_, kind), old_period)| kind.period != *old_period)
            .map(|((name, kind), _)| format!("{name} every {:?}", kind.period.max(self.interval)))
            .collect();
        (!changes.is_empty()).then(|| changes.join(", "))
    }

    /// Expected time of all calls per second, in seconds.
    fn load(&self) -> f64 {
        let load =
            |kind: &CallStats| kind.mean_seconds.unwrap_or_default() / kind.period.max(self.interval).as_secs_f64();
        self.kinds.values().map(load).sum()
    }
}

fn base_period(tiers: Tiers, tier: Tier) -> Duration {
    match tier {
        Tier::Rare => STRETCHED_PERIODS[2],
        Tier::Hot => Duration::ZERO,
        Tier::Warm => tiers.warm,
        Tier::Cold => tiers.cold,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Samples for a minute. Returns the number of calls by kind in the last 30 s, and the time per
    /// second.
    fn a_minute(tiers: Tiers, interval: Duration, costs: &[(&'static str, u64)]) -> (BTreeMap<&'static str, u32>, f64) {
        let mut plan = CallPlan::new(tiers, interval);
        let (start, mut at) = (Instant::now(), Duration::ZERO);
        let (mut call_counts, mut spent) = (BTreeMap::new(), Duration::ZERO);
        while at < SECOND * 60 {
            plan.begin_sample(start + at);
            for (kind, micros) in costs {
                if plan.is_due(kind) {
                    let duration = Duration::from_micros(*micros);
                    plan.record(kind, duration);
                    if at >= SECOND * 30 {
                        *call_counts.entry(*kind).or_default() += 1;
                        spent += duration;
                    }
                }
            }
            at += interval;
        }
        (call_counts, spent.as_secs_f64() / 30.0)
    }

    #[test]
    fn within_the_budget_everything_is_asked_every_second() {
        let costs = [("memory", 12), ("temperature", 365), ("fan_speed", 137)];
        let (call_counts, load) = a_minute(Tiers::default(), SECOND, &costs);
        assert_eq!(call_counts, [("memory", 30), ("temperature", 30), ("fan_speed", 30)].into());
        assert!(load < 0.005);
    }

    #[test]
    fn at_ten_samples_a_second_only_what_changes_fast_is_in_all_of_them() {
        let costs = [("memory", 12), ("temperature", 365), ("fan_speed", 137)];
        let (call_counts, load) = a_minute(Tiers::default(), SECOND / 10, &costs);
        assert_eq!(call_counts, [("memory", 300), ("temperature", 30), ("fan_speed", 30)].into());
        assert!(load < 0.005);
    }

    #[test]
    fn the_dearest_calls_are_spread_until_the_budget_is_kept() {
        let costs =
            [("memory", 12), ("utilization", 3), ("processes", 4_500), ("temperature", 900), ("fan_speed", 2_000)];
        let (call_counts, load) = a_minute(Tiers::default(), SECOND / 10, &costs);
        assert_eq!((call_counts["memory"], call_counts["utilization"]), (300, 300));
        assert_eq!((call_counts["fan_speed"], call_counts["temperature"]), (1, 30));
        assert_eq!(call_counts["processes"], 3);
        assert!(load <= 0.005, "{load}");
    }

    #[test]
    fn if_nothing_else_helps_what_changes_fast_is_asked_less_often_too() {
        let costs = [("memory", 3_000), ("temperature", 400)];
        let (call_counts, load) = a_minute(Tiers::default(), SECOND / 10, &costs);
        assert!(load <= 0.005 && call_counts["memory"] >= 29, "{call_counts:?} {load}");
    }

    #[test]
    fn the_instances_of_a_gpu_share_its_budget() {
        let costs = [("memory", 100), ("temperature", 400), ("fan_speed", 400)];
        let spent = |parts| {
            let mut plan = CallPlan::new(Tiers::default(), SECOND);
            plan.set_parts(parts);
            let start = Instant::now();
            for second in 0..60 {
                plan.begin_sample(start + SECOND * second);
                for (kind, micros) in costs {
                    if plan.is_due(kind) {
                        plan.record(kind, Duration::from_micros(micros));
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
        let mut plan = CallPlan::new(Tiers::default(), SECOND);
        let start = Instant::now();
        for second in 0..40 {
            assert_eq!(plan.begin_sample(start + SECOND * second), None);
            let slow = second == 5;
            plan.record("memory", Duration::from_millis(if slow { 30 } else { 0 }));
        }
        assert_eq!(plan.take_costs()[0].1.longest, Duration::from_millis(30));
        assert_eq!(plan.take_costs(), []);
    }
}
