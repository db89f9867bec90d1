//! Cost of driver calls, for metrics.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

/// Accumulated cost of calls of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Number of calls.
    pub calls: u64,
    /// Total time of the calls.
    pub total: Duration,
    /// Time of the longest call.
    pub longest: Duration,
}

impl Cost {
    /// Adds a call with the given duration.
    pub fn add(&mut self, duration: Duration) {
        self.merge(Self { calls: 1, total: duration, longest: duration });
    }

    fn merge(&mut self, other: Self) {
        self.calls += other.calls;
        self.total += other.total;
        self.longest = self.longest.max(other.longest);
    }
}

/// Costs since the start, by UUID of the GPU and kind of call. Clones share the costs.
#[derive(Debug, Clone, Default)]
pub struct Costs(Arc<Mutex<BTreeMap<String, GpuCosts>>>);

type GpuCosts = BTreeMap<&'static str, Cost>;

impl Costs {
    /// Adds the cost of one sample of a GPU.
    pub fn add(&self, gpu_uuid: &str, costs: impl IntoIterator<Item = (&'static str, Cost)>) {
        let mut costs_by_gpu = self.0.lock();
        if !costs_by_gpu.contains_key(gpu_uuid) {
            costs_by_gpu.insert(gpu_uuid.to_string(), GpuCosts::new());
        }
        if let Some(gpu_costs) = costs_by_gpu.get_mut(gpu_uuid) {
            for (kind, cost) in costs {
                gpu_costs.entry(kind).or_default().merge(cost);
            }
        }
    }

    /// All costs, as UUID of the GPU, kind of call, and cost.
    pub fn snapshot(&self) -> Vec<(String, &'static str, Cost)> {
        let costs_by_gpu = self.0.lock();
        let kinds = costs_by_gpu.iter().flat_map(|(gpu, gpu_costs)| {
            let kinds = gpu_costs.iter();
            kinds.map(|(kind, cost)| (gpu.clone(), *kind, *cost))
        });
        kinds.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_add_up_by_gpu_and_kind() {
        let costs = Costs::default();
        let millis = Duration::from_millis;
        for duration in [1, 5, 2] {
            let mut cost = Cost::default();
            cost.add(millis(duration));
            costs.add("GPU-1", [("memory", cost), ("pstate", cost)]);
        }
        let snapshot = costs.snapshot();
        assert_eq!(snapshot.len(), 2);
        let memory = Cost { calls: 3, total: millis(8), longest: millis(5) };
        assert_eq!(snapshot[0], ("GPU-1".to_string(), "memory", memory));
    }
}
