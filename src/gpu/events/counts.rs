//! Counts of stored events since the start, for metrics.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};

use crate::entity::gpu_event::{self, GpuEventKind};

/// Upper bound of counted pairs of GPU and kind, because reporters choose the UUIDs. Further events
/// are counted by kind only.
const MAX_KEYS: usize = 10_000;

/// Key of a count: the UUID of the GPU, if known, and the kind.
type Key = (Option<String>, GpuEventKind);

/// Counts of stored events. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct EventCounts(Arc<Mutex<HashMap<Key, u64>>>);

impl EventCounts {
    /// Adds stored events, each with its number of occurrences.
    pub(in crate::gpu) fn add(&self, events: &[gpu_event::Model]) {
        let mut counts = self.lock();
        for event in events {
            let mut key = (event.gpu_uuid.clone(), event.kind);
            if counts.len() >= MAX_KEYS && !counts.contains_key(&key) {
                key.0 = None;
            }
            *counts.entry(key).or_default() += event.occurrences.unsigned_abs();
        }
    }

    /// All counts, by UUID of the GPU, if known, and kind.
    pub fn snapshot(&self) -> HashMap<(Option<String>, GpuEventKind), u64> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, u64>> {
        self.0.lock()
    }
}
