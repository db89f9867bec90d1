//! How many events were stored since the start, for tools that raise alarms.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};

use crate::entity::gpu_event::{self, GpuEventKind};

/// How many kinds and GPUs are counted: whoever reports names them as they like. Of the others only the
/// kind is.
const MOST: usize = 10_000;

/// What is counted together: a GPU, if it is known, and a kind.
type Key = (Option<String>, GpuEventKind);

/// The counts. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Counts(Arc<Mutex<HashMap<Key, u64>>>);

impl Counts {
    /// Counts events that are stored, by what they stand for.
    pub(in crate::gpu) fn add(&self, events: &[gpu_event::Model]) {
        let mut counts = self.lock();
        for event in events {
            let mut key = (event.gpu_uuid.clone(), event.kind);
            if counts.len() >= MOST && !counts.contains_key(&key) {
                key.0 = None;
            }
            *counts.entry(key).or_default() += event.occurrences.unsigned_abs();
        }
    }

    /// All of them, by the UUID of the GPU, if it is known, and the kind.
    pub fn all(&self) -> HashMap<(Option<String>, GpuEventKind), u64> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, u64>> {
        self.0.lock()
    }
}
