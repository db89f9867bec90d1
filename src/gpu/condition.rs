//! Condition of a GPU or MIG instance, as clients see it.

use crate::pb;

/// Condition of a GPU or MIG instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// State of the GPU. A MIG instance has the state of its GPU.
    pub state: pb::GpuState,
    /// Memory pressure. Absent if unknown, for example while `state` is not OK.
    pub memory_pressure: Option<pb::MemoryPressure>,
}
