//! What the calls into the driver cost, for whoever watches the watcher.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

/// What calls of one kind have cost so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// How many there were.
    pub calls: u64,
    /// How long they took together.
    pub total: Duration,
    /// How long the longest took.
    pub longest: Duration,
}

impl Cost {
    /// Adds a call that took this long.
    pub fn add(&mut self, took: Duration) {
        self.merge(Self {
            calls: 1,
            total: took,
            longest: took,
        });
    }

    fn merge(&mut self, other: Self) {
        self.calls += other.calls;
        self.total += other.total;
        self.longest = self.longest.max(other.longest);
    }
}

/// The costs since the start, by the UUID of the GPU and the kind of the call. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Costs(Arc<Mutex<BTreeMap<String, OfGpu>>>);

type OfGpu = BTreeMap<&'static str, Cost>;

impl Costs {
    /// Adds what one sample of a GPU has cost.
    pub fn add(&self, gpu_uuid: &str, costs: impl IntoIterator<Item = (&'static str, Cost)>) {
        let mut all = self.0.lock();
        if !all.contains_key(gpu_uuid) {
            all.insert(gpu_uuid.to_string(), OfGpu::new());
        }
        if let Some(of_gpu) = all.get_mut(gpu_uuid) {
            for (kind, cost) in costs {
                of_gpu.entry(kind).or_default().merge(cost);
            }
        }
    }

    /// All of them: the GPU, the kind of the call, and its cost.
    pub fn all(&self) -> Vec<(String, &'static str, Cost)> {
        let all = self.0.lock();
        let kinds = all.iter().flat_map(|(gpu, of_gpu)| {
            let kinds = of_gpu.iter();
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
        for took in [1, 5, 2] {
            let mut cost = Cost::default();
            cost.add(millis(took));
            costs.add("GPU-1", [("memory", cost), ("pstate", cost)]);
        }
        let all = costs.all();
        assert_eq!(all.len(), 2);
        let memory = Cost {
            calls: 3,
            total: millis(8),
            longest: millis(5),
        };
        assert_eq!(all[0], ("GPU-1".to_string(), "memory", memory));
    }
}
